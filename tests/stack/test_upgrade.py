"""A database that an earlier MLflow made."""

import subprocess
import sys
from pathlib import Path

import pytest
from native import postgres, processes
from native.settings import Settings
from native.team import Team

from tests.stack.conftest import Stack
from tests.support.programs import require
from tokenbridge.base.errors import UserError

pytestmark = pytest.mark.cluster

# What alembic does for MLflow, one step back.
DOWNGRADE = """
import sqlalchemy
from alembic import command
from mlflow.store.db.utils import _get_alembic_config

url = "postgresql+psycopg2://"
with sqlalchemy.create_engine(url).begin() as connection:
    config = _get_alembic_config(url)
    config.attributes["connection"] = connection
    command.downgrade(config, "-1")
"""


@pytest.fixture
def team(home: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    require("initdb")
    stack = Stack(home)
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    return Team(Settings.load(stack.home))


def downgrade(team: Team) -> None:
    environment = processes.environment(team.settings) | postgres.connection(team.settings)
    environment["PGDATABASE"] = team.settings["MLFLOW_DATABASE"]
    subprocess.run([sys.executable, "-c", DOWNGRADE], env=environment, check=True, capture_output=True)


def psql(team: Team, query: str) -> str:
    return postgres.run(
        team.settings, "psql", "--no-psqlrc", "-d", team.settings["MLFLOW_DATABASE"], "-tAqc", query
    ).strip()


def test_old_tables_are_refused_with_the_remedy_and_that_mends_them(team: Team) -> None:
    version = "SELECT version_num FROM alembic_version"
    team.upgrade()  # makes the tables
    try:
        team.up(["postgres"])
        newest = psql(team, version)
        downgrade(team)
        older = psql(team, version)
        with pytest.raises(UserError, match="must be down"):
            team.upgrade()
        team.down()
        team.upgrade()
        team.up(["postgres"])
        assert psql(team, version) == newest != older

        psql(team, f"UPDATE alembic_version SET version_num = '{older}'")  # all tables there, which the server looks at
        with pytest.raises(UserError, match=r"(?s)out-of-date database schema.*python docker/stack.py upgrade"):
            team.up(["postgres", "mlflow"])
    finally:
        team.down()
