"""A database whose tables another MLflow made."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from mlflow.store.db.utils import _get_alembic_config

from tokenbridge.infra.tracking.pending import find_spools
from tokenbridge.infra.tracking.schema import latest_revision
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import connect
from tokenbridge.infra.tracking.sync import SyncReport, sync_all
from tokenbridge.infra.tracking.uri import default_uri


def record(root: Path, key: str) -> SyncReport:
    Tracker.open("train@tiny", key, root, system_interval=0).finish()
    return sync_all(root)


def revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def make_old(root: Path) -> str:
    """Take the tables back by one revision, as an earlier MLflow left them; returns its name."""
    url = default_uri(root)
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        config = _get_alembic_config(url)
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    engine.dispose()
    return revision(root / "mlflow.db")


def mark(database: Path, name: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [name])


@pytest.mark.pipeline
def test_an_older_one_is_upgraded_and_a_copy_kept(root: Path) -> None:
    record(root, "before")
    old = make_old(root)
    assert old != latest_revision()
    assert record(root, "after").problem is None
    assert revision(root / "mlflow.db") == latest_revision()
    assert None not in (connect(root).made_by("train@tiny", "before"), connect(root).made_by("train@tiny", "after"))
    assert revision(root / f"mlflow.db.{old}") == old


def test_a_newer_one_is_left_as_it_is_and_runs_wait(root: Path) -> None:
    database = root / "mlflow.db"
    record(root, "before")
    mark(database, "ffffffffffff")
    report = record(root, "after")
    assert f"{database} was made by another MLflow than" in str(report.problem)
    assert revision(database) == "ffffffffffff"
    mark(database, latest_revision())  # as if the right MLflow was installed
    assert sync_all(root).problem is None
    assert connect(root).made_by("train@tiny", "after") is not None
    assert not find_spools(root)


def test_that_of_a_team_is_its_owners_to_upgrade(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark(root / "mlflow.db", "ffffffffffff")  # MLflow itself upgrades tables only if one is missing
    (root / "project").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(root))
    report = record(root / "project", "key")
    assert "mlflow db upgrade <database_uri>" in str(report.problem)
    assert len(find_spools(root / "project")) == 1
