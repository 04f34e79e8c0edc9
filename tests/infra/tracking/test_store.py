"""The store is created once and whole, whoever comes first."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.infra.tracking.conftest import Start
from tests.support.patience import PATIENCE
from tokenbridge.infra.dvc import md5_as_dvc
from tokenbridge.infra.tracking.logged_model import MODEL_MD5
from tokenbridge.infra.tracking.pending import SyncReport
from tokenbridge.infra.tracking.registry import EVALUATION
from tokenbridge.infra.tracking.spool import Status, Tracker
from tokenbridge.infra.tracking.store import (
    Store,
    StoreError,
    connect,
    open_store,
    page_of,
    ui_command,
    ui_link,
)
from tokenbridge.infra.tracking.sync import sync_all
from tokenbridge.infra.tracking.uri import tracking_uri

CONNECT = """
from pathlib import Path
from tokenbridge.infra.tracking.store import connect
print(connect(Path(".")).experiment)
"""


def record(root: Path, key: str, status: Status = "FINISHED") -> None:
    Tracker.open("train@tiny", key, root, system_interval=0).finish(status)
    sync_all(root)


@pytest.mark.pipeline
def test_processes_that_start_together_get_one_database_and_one_experiment(start: Start) -> None:
    processes = [start(CONNECT) for _ in range(4)]
    answers = {process.communicate(timeout=PATIENCE)[0] for process in processes}
    assert answers == {"1\n"}


def test_an_experiment_explains_itself_gets_what_it_lacks_and_keeps_what_it_has(root: Path, store: Store) -> None:
    assert "lower is better" in store.client.get_experiment(store.experiment).tags["mlflow.note.content"]
    store.client.delete_experiment_tag(store.experiment, "mlflow.sharedViewState.pipelines")
    store.client.set_experiment_tag(store.experiment, "mlflow.note.content", "ours")
    tags = store.client.get_experiment(connect(root).experiment).tags
    assert tags["mlflow.note.content"] == "ours"
    assert json.loads(tags["mlflow.sharedViewState.pipelines"])["name"] == "Pipelines"


def test_a_run_is_found_by_stage_and_key_when_it_finished(root: Path, store: Store) -> None:
    store.client.delete_experiment(store.experiment)  # the next run restores it
    record(root, "a", "FAILED")
    assert store.made_by("train@tiny", "a") is None
    record(root, "a")
    first = store.made_by("train@tiny", "a")
    record(root, "a")
    newest = store.made_by("train@tiny", "a")
    assert None not in (first, newest)
    assert first != newest
    assert store.made_by("train@tiny", "b") is None
    assert store.made_by("train@base", "a") is None


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),
        ("sqlite:////elsewhere/runs.db", "sqlite:////elsewhere/runs.db"),
        ("./mlruns", "file://{root}/mlruns"),
        ("file:mlruns", "file://{root}/mlruns"),
        ("file:///elsewhere", "file:///elsewhere"),
        ("https://mlflow.example.org", "https://mlflow.example.org"),
        ("databricks", "databricks"),
    ],
)
def test_a_relative_address_is_relative_to_the_project(
    given: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the folder of each process, where each would have a store of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri(tmp_path) == used.format(root=tmp_path)


def test_runs_and_models_are_found_after_the_project_was_moved(root: Path, pipeline_folder: Path) -> None:
    with Tracker.open("train@tiny", "a", root, system_interval=0) as tracker:
        tags = {MODEL_MD5: md5_as_dvc(pipeline_folder), EVALUATION: "a"}
        tracker.version(pipeline_folder, name="tiny", model="tiny", tags=tags, metrics={}, description="")
        tracker.artifact(pipeline_folder / "model_index.json")
    assert sync_all(root).problem is None
    moved = root.rename(root.with_name("a new name"))
    store = connect(moved)
    (run,) = store.client.search_runs([store.experiment])
    assert Path(store.client.download_artifacts(run.info.run_id, "model_index.json")).exists()
    with closing(sqlite3.connect(moved / "mlflow.db")) as database:
        assert [line for line in database.iterdump() if f"{root}/" in line] == []


def test_the_page_shows_the_local_store(root: Path) -> None:
    command = ui_command(root)
    assert command is not None
    assert f"sqlite:///{root / 'mlflow.db'}" in command
    runs = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    assert ui_link(root) == f"{runs}&viewStateShareKey=pipelines"


@pytest.mark.parametrize("content", [b"no database", bytes(9000)])
def test_garbage_in_place_of_the_database_is_set_aside(root: Path, new_database: None, content: bytes) -> None:
    (root / "mlflow.db").write_bytes(content)
    (root / "mlflow.db-journal").write_text("would be rolled back into the next database")
    assert page_of(root, "any") is None
    assert connect(root).newest("tags.spool = 'any'") is None
    assert len(list(root.glob("mlflow.db.damaged-*"))) == 1
    assert not (root / "mlflow.db-journal").exists()


def test_a_database_that_another_process_replaced_is_opened_again(root: Path, store: Store, new_database: None) -> None:
    (root / "mlflow.db").rename(root / "aside")  # connections stay at the renamed file
    (root / "aside").write_bytes(b"no database" * 1000)
    connect(root)
    assert connect(root).newest("tags.spool = 'any'") is None
    assert sorted(path.name for path in root.glob("mlflow.db*")) == ["mlflow.db"]


def test_what_was_deleted_in_mlflow_is_named(root: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"lacks what was deleted meanwhile: .*no-such-run"),
        open_store(root) as it,
    ):
        it.client.get_run("no-such-run")


def test_no_message_shows_the_password_of_an_address(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 does not answer") as caught, open_store(root):
        pass
    report = SyncReport()
    with report.noting_problems():
        connect(root)
    assert "127.0.0.1" in str(report.problem)
    assert "hunter2" not in f"{caught.value} {report.problem}"


def test_a_run_has_a_page_once_it_was_sent(root: Path, store: Store) -> None:
    tracker = Tracker.open("train@tiny", "a", root, name="a name", system_interval=0)
    assert page_of(root, tracker.id) is None
    tracker.finish()
    sync_all(root)
    (run,) = store.client.search_runs([store.experiment])
    assert run.info.run_name == "a name"
    assert f"/experiments/1/runs/{run.info.run_id}?" in str(page_of(root, tracker.id))


def test_a_server_has_its_own_page_if_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    assert ui_command(tmp_path) is None
    assert page_of(tmp_path, "any") is None
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 does not answer"):
        ui_link(tmp_path)
