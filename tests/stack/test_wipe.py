"""The day the disk dies. Last by its name: the tests before need what is wiped here."""

import base64
import shutil
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient
from native import postgres
from native.settings import SECRETS
from native.team import Team

from tests.stack.conftest import Stack, answer, experiments, log_run
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.sync import sync_all

pytestmark = pytest.mark.cluster


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()


def a_wrong_password_loses_nothing(root: Path) -> None:
    with Tracker.open("train@tiny", "key", root, system_interval=0) as tracker:
        tracker.metrics({"loss": 0.25}, step=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        refused = sync_all(root)
        assert refused.sent == []
        assert "401" in str(refused.problem)
    assert sync_all(root).sent == [tracker.id]


def test_a_backup_brings_everything_back_and_strangers_are_kept_out(
    stack: Stack, client: MlflowClient, tmp_path: Path
) -> None:
    """The new start asks for passwords, so that one start serves both questions."""
    run = log_run(client, "last day")
    kept = tmp_path / "backup"
    assert stack("backup", str(kept)).returncode == 0
    assert "must be down" in stack("restore", str(kept)).stderr

    (stack.home / "mine").mkdir()
    assert "nothing was stopped or deleted" in stack("down", "--wipe").stderr  # no one answers yes
    assert stack.pid("postgres")
    assert stack("down").returncode == 0
    assert not stack.processes()
    with socket.create_server(("127.0.0.1", int(stack.environment["PREFECT_PORT"]))):
        assert "still answers (PREFECT_PORT)" in stack("down", "--wipe", "--yes").stderr
    assert stack("down", "--wipe", "--yes").returncode == 0
    assert {path.name for path in stack.home.iterdir()} == {SECRETS, "client.env", "lock", "mine"}

    broken = shutil.copytree(kept, tmp_path / "broken")
    (broken / "postgres" / "mlflow.dump").write_bytes(b"half")
    assert "is not a whole backup" in stack("restore", str(broken)).stderr
    restored = stack("restore", str(kept))
    assert restored.returncode == 0, restored.stderr

    stack.environment["MLFLOW_OPTIONS"] = "--app-name basic-auth"
    team = Team(stack.settings())
    team.up(["postgres", "seaweedfs", "mlflow"])
    pools = postgres.run(team.settings, "psql", "-d", "prefect", "-tAc", "SELECT name FROM work_pool")
    assert team.settings["WORK_POOL"] in pools.splitlines()
    password = team.settings["MLFLOW_ADMIN_PASSWORD"]
    assert answer(experiments(stack)) == 401
    assert answer(experiments(stack), Authorization=basic("wrong")) == 401
    assert answer(experiments(stack), Authorization=basic(password)) == 200
    a_wrong_password_loses_nothing(tmp_path / "project")
    assert client.get_run(run).data.metrics == {"loss": 0.5}
    assert Path(client.download_artifacts(run, "notes/hello.txt", str(tmp_path))).read_text() == "hello"
