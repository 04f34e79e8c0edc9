"""A spool becomes one MLflow run: everything in it, once, with the times at which it happened."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.infra.tracking.conftest import Start
from tests.support.checkout import CHECKOUT
from tests.support.patience import PATIENCE
from tokenbridge.infra.tracking.live import LiveSync
from tokenbridge.infra.tracking.pending import Spool, find_spools
from tokenbridge.infra.tracking.registry import MODEL_ID, Registry
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import Store, connect, page_of
from tokenbridge.infra.tracking.sync import main, sync_all

WRITER = """
import itertools, time
from pathlib import Path
from tokenbridge.infra.tracking.spool import Tracker
tracker = Tracker.open("train@tiny", "k", Path("."), system_interval=0)
for step in itertools.count():
    tracker.metrics({"loss": 1 / (1 + step)}, step)
    time.sleep(0.0005)
    if step == 1000:
        print("ready", flush=True)
"""
SYNCER = """
from pathlib import Path
from tokenbridge.infra.tracking.sync import sync_all
print(len(sync_all(Path("."), wait=60).sent))
"""


def open_tracker(root: Path, stage: str = "train@tiny", parent: str | None = None) -> Tracker:
    return Tracker.open(stage, "key", root, parent=parent, system_interval=0)


def run_of(store: Store, tracker: Tracker) -> Run:
    runs = store.client.search_runs([store.experiment], f"tags.spool = '{tracker.id}'")
    assert len(runs) == 1
    return runs[0]


def history(store: Store, run: Run, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in store.client.get_metric_history(run.info.run_id, metric)]


def test_a_run_arrives_with_all_it_recorded(root: Path, store: Store) -> None:
    plot = root / "curve.png"
    plot.write_text("picture")
    before = time.time() * 1000
    with open_tracker(root) as tracker:
        tracker.params({"train": {"epochs": 2, "precision": "bf16", "ema": None}})
        tracker.tags({"launcher": "local"})
        tracker.dataset("fashion_mnist", "a" * 64, "data/images", "training")
        for step in range(3):
            tracker.metrics({"loss": 1.0 / (1 + step)}, step)
        tracker.artifact(plot, "plots")
    after = time.time() * 1000
    time.sleep(0.1)
    sync_all(root)
    assert find_spools(root) == []
    run = run_of(store, tracker)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "train@tiny"
    assert run.data.params == {"train.epochs": "2", "train.precision": "bf16", "train.ema": "null"}
    assert {"launcher": "local", "stage": "train@tiny", "stage.key": "key"}.items() <= run.data.tags.items()
    assert history(store, run, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    times = [metric.timestamp for metric in store.client.get_metric_history(run.info.run_id, "loss")]
    assert before - 1 <= run.info.start_time <= times[0] <= times[-1] <= run.info.end_time <= after
    assert [file.path for file in store.client.list_artifacts(run.info.run_id, "plots")] == ["plots/curve.png"]
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("fashion_mnist", "a" * 36)
    assert {tag.key: tag.value for tag in used.tags}["digest"] == "a" * 64


def test_sending_twice_changes_nothing(root: Path, store: Store) -> None:
    """As after a kill between sending and noting that it was sent."""
    before = root / "before"
    with open_tracker(root) as tracker:
        tracker.params({"epochs": 2})
        for step in range(500):
            tracker.metrics({"loss": float(step)}, step)
    shutil.copytree(tracker.folder, before)
    sync_all(root)
    before.rename(tracker.folder)
    sync_all(root)
    assert len(history(store, run_of(store, tracker), "loss")) == 500


def test_parents_work_offline_and_outlive_their_spool(root: Path, store: Store) -> None:
    parent = open_tracker(root, "pipeline")
    early = open_tracker(root, "fetch", parent.id)
    late = open_tracker(root, "vae", parent.id)
    early.finish()
    parent.finish()
    sync_all(root)
    assert not parent.folder.exists()
    last = open_tracker(root, "encode", parent.id)
    last.finish()
    late.finish()
    sync_all(root)
    parent_id = run_of(store, parent).info.run_id
    assert {run_of(store, child).data.tags["mlflow.parentRunId"] for child in (early, late, last)} == {parent_id}


def test_a_skipped_stage_names_the_run_that_made_its_outputs(root: Path, store: Store) -> None:
    maker = open_tracker(root, "train@tiny")
    maker.finish()
    with open_tracker(root, "pipeline") as parent:
        parent.reused("train@tiny", "key")
        parent.reused("train@base", "key")
    sync_all(root)
    tags = run_of(store, parent).data.tags
    assert tags["reused.train_tiny"] == run_of(store, maker).info.run_id
    assert tags["reused.train_base"] == "a run unknown to this store"


def test_long_values_are_cut_and_names_cleaned_in_silence(
    root: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["x" * 100] * 100
    with open_tracker(root) as tracker:
        tracker.params({"data": {"label_names": names}})
        tracker.tags({"left_out": "y" * 10_000})
        tracker.metrics({"accuracy[T-shirt]": 0.5})
    sync_all(root)
    run = run_of(store, tracker)
    assert json.dumps(names).startswith(run.data.params["data.label_names"])
    assert len(run.data.params["data.label_names"]) > 5000
    assert len(run.data.tags["left_out"]) > 5000
    assert run.data.metrics == {"accuracy_T-shirt_": 0.5}
    assert caplog.records == []


def test_a_refused_record_is_reported_and_stops_nothing(
    root: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_tracker(root) as tracker:
        tracker.params({"epochs": 2})
        tracker.metrics({"loss": 1.0})
        tracker.params({"epochs": 3})
        tracker.params({"width": 160})
        tracker.params({"epochs": 4})
        tracker.metrics({"loss": 0.5}, step=1)
    assert sync_all(root).problem is None
    run = run_of(store, tracker)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "2", "width": "160"}
    assert len(history(store, run, "loss")) == 2
    assert '"values": {"epochs": 3}' in run.data.tags["sync.refused"]
    said = capsys.readouterr().err
    assert said.count("MLflow refused a record") == 1
    assert f"It is left out, and stays in {tracker.folder}" in said
    assert tracker.folder.exists()
    assert sync_all(root).sent == []


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"null", b'{"offset": -1}', b'{"offset": 1e400}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_damaged_state_is_set_aside_and_the_run_sent_again(
    root: Path, store: Store, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    damaged, other = open_tracker(root), open_tracker(root, "encode")
    damaged.metrics({"loss": 1.0})
    sync_all(root)
    Spool(damaged.folder).state_path.write_bytes(damage)
    other.metrics({"loss": 3.0})
    report = sync_all(root)
    assert (report.problem, report.sent) == (None, [damaged.id, other.id])
    assert f"{damaged.id}/state.json is damaged" in capsys.readouterr().err
    assert history(store, run_of(store, damaged), "loss") == [(0, 1.0)]
    assert history(store, run_of(store, other), "loss") == [(0, 3.0)]
    damaged.finish()
    other.finish()


@pytest.mark.parametrize("name", ["meta.json", "events.jsonl"])
def test_a_spool_that_cannot_be_sent_is_set_aside_and_the_others_go_on(
    root: Path, store: Store, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    damaged, other = open_tracker(root), open_tracker(root, "encode")
    (damaged.folder / name).unlink()
    (damaged.folder / "meta.json").touch()
    assert sync_all(root).sent == [other.id]
    assert damaged.folder.exists()  # its writer lives
    damaged.finish()
    other.finish()
    assert sync_all(root).problem is None
    assert find_spools(root) == []
    assert (root / ".spool/damaged" / damaged.id / "writer.lock").exists()
    assert run_of(store, other).info.status == "FINISHED"
    assert capsys.readouterr().err.count(f"the record of run {damaged.id} is damaged") == 1


@pytest.mark.parametrize("line", [b"\0" * 40, b"[]", b'{"type": 3}', b'{"type": "metrics"}', b'{"type": "no such"}'])
def test_a_damaged_line_is_left_out(root: Path, store: Store, line: bytes) -> None:
    tracker = open_tracker(root)
    tracker.metrics({"loss": 1.0})
    with (tracker.folder / "events.jsonl").open("ab") as file:
        file.write(line + b"\n")
    tracker.metrics({"loss": 2.0}, step=1)
    tracker.finish()
    assert sync_all(root).problem is None
    run = run_of(store, tracker)
    assert history(store, run, "loss") == [(0, 1.0), (1, 2.0)]
    assert (run.info.status, tracker.folder.exists()) == ("FINISHED", True)
    assert "sync.refused" in run.data.tags


@pytest.mark.parametrize("damage", ["garbage", "zeros", "middle"])
def test_a_damaged_database_is_set_aside_and_the_runs_go_to_a_new_one(
    root: Path, store: Store, capsys: pytest.CaptureFixture[str], new_database: None, damage: str
) -> None:
    """While this process uses it, and with all of a run that was sent in part."""
    tracker, database = open_tracker(root), root / "mlflow.db"
    tracker.metrics({"loss": 1.0})
    sync_all(root)
    size = database.stat().st_size
    page = 4096  # the first one stays whole in the third case
    content = {
        "garbage": b"no database" * 500,
        "zeros": bytes(size),
        "middle": database.read_bytes()[:page] + b"x" * size,
    }
    database.write_bytes(content[damage])
    with tracker:
        tracker.metrics({"loss": 2.0}, step=1)
    report = sync_all(root)
    (aside,) = root.glob("mlflow.db.damaged-*")
    assert aside.read_bytes() == content[damage]
    assert report.problem is None
    assert history(store, run_of(connect(root), tracker), "loss") == [(0, 1.0), (1, 2.0)]
    assert f"mlflow.db was damaged: it is called {aside.name} now" in capsys.readouterr().err


def test_a_run_deleted_in_mlflow_is_reported_once_and_blocks_no_other(
    root: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    deleted, other = open_tracker(root), open_tracker(root, "encode")
    sync_all(root)
    run_id = run_of(store, deleted).info.run_id
    store.client.delete_run(run_id)
    for value in range(3):
        deleted.metrics({"loss": float(value)}, value)
        other.metrics({"loss": float(value)}, value)
        assert sync_all(root).problem is None
    assert capsys.readouterr().err.count("was deleted in MLflow") == 1
    assert len(history(store, run_of(store, other), "loss")) == 3
    store.client.restore_run(run_id)
    sync_all(root)
    assert len(history(store, run_of(store, deleted), "loss")) == 3
    store.client.delete_run(run_id)
    deleted.finish()
    other.finish()
    sync_all(root)
    assert find_spools(root)[0].state().done
    assert sync_all(root).sent == []  # MLflow is not asked again
    assert len(store.client.search_runs([store.experiment])) == 1


def test_a_tag_or_an_experiment_that_is_gone_makes_no_second_run(root: Path, store: Store) -> None:
    with open_tracker(root) as tracker:
        sync_all(root)
        run_id = run_of(store, tracker).info.run_id
        store.client.delete_tag(run_id, "spool")
        store.client.delete_experiment(store.experiment)
    assert sync_all(root).problem is None
    assert [run.info.run_id for run in store.client.search_runs([store.experiment])] == [run_id]


def test_a_running_run_is_sent_bit_by_bit_and_a_new_store_gets_all_of_it(
    root: Path, store: Store, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = open_tracker(root)
    for step in range(2):
        tracker.metrics({"loss": float(step)}, step)
        sync_all(root)
        assert history(store, run_of(store, tracker), "loss")[-1] == (step, float(step))
    assert run_of(store, tracker).info.status == "RUNNING"
    other = root / "other.db"
    other.write_bytes(empty_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    tracker.finish()
    sync_all(root)
    assert history(connect(root), run_of(connect(root), tracker), "loss") == [(0, 0.0), (1, 1.0)]


def test_a_run_whose_process_was_killed_is_closed(root: Path, store: Store, start: Start) -> None:
    writer = start(WRITER)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    sync_all(root)
    (spool,) = find_spools(root)
    assert not spool.abandoned()
    run_id = str(spool.state().run_id)
    assert store.client.get_run(run_id).info.status == "RUNNING"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    written = sum(event["type"] == "metrics" for _, event in spool.events(0))
    sync_all(root)
    run = store.client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.info.start_time < run.info.end_time <= time.time() * 1000
    assert len(history(store, run, "loss")) == written > 1000


@pytest.mark.pipeline
def test_two_syncers_at_once_send_everything_once(root: Path, store: Store, start: Start) -> None:
    parent = open_tracker(root, "pipeline")
    trackers = [open_tracker(root, f"stage{i}", parent.id) for i in range(8)]
    for tracker in trackers:
        for step in range(300):
            tracker.metrics({"loss": float(step)}, step)
        tracker.finish()
    parent.finish()
    counts = [int(process.communicate(timeout=PATIENCE)[0]) for process in [start(SYNCER) for _ in range(3)]]
    assert sum(counts) == 9
    for tracker in trackers:
        assert len(history(store, run_of(store, tracker), "loss")) == 300


@pytest.mark.pipeline
def test_a_syncer_killed_at_any_moment_loses_and_repeats_nothing(root: Path, store: Store, start: Start) -> None:
    with open_tracker(root) as tracker:
        for step in range(20_000):
            tracker.metrics({"loss": float(step)}, step)
    for seconds in (3.0, 3.5, 4.0):
        syncer = start(SYNCER)
        time.sleep(seconds)
        syncer.kill()
        syncer.wait()
    sync_all(root)
    steps = [step for step, _ in history(store, run_of(store, tracker), "loss")]
    assert sorted(steps) == list(range(20_000))


@pytest.mark.pipeline
def test_a_spool_of_version_0_1_is_delivered(root: Path, store: Store) -> None:
    """A pipeline, a fetch that logged a model, a registration, and a training that was killed while it wrote a line."""
    shutil.copytree(CHECKOUT / "tests/assets/spool_0.1", root / ".spool", dirs_exist_ok=True)
    assert sync_all(root).problem is None
    assert find_spools(root) == []
    runs = {run.data.tags["stage"]: run for run in store.client.search_runs([store.experiment])}
    pipeline, fetch, train = runs["pipeline"], runs["fetch"], runs["train@tiny"]
    children = {run.data.tags.get("mlflow.parentRunId") for run in runs.values()}
    assert children == {None, pipeline.info.run_id}
    assert pipeline.info.run_name == "pipeline seed=1"
    assert pipeline.data.tags["reused.fetch"] == "a run unknown to this store"  # sent before the fetch
    assert fetch.info.start_time == 1795857271097
    assert fetch.data.params == {"data.name": "fashion_mnist", "data.label_names": '["Bag", "Sneaker"]'}
    assert fetch.inputs.dataset_inputs[0].dataset.digest == "ab" * 18
    assert [file.path for file in store.client.list_artifacts(fetch.info.run_id)] == ["reports"]
    assert (train.info.status, train.data.tags["resumed_from"]) == ("KILLED", "earlier")
    assert history(store, train, "loss") == [(1, 2.5)]
    version = Registry(store).version("tokenbridge-fashion_mnist-tiny")
    assert f"models:/{version.tags[MODEL_ID]}" == fetch.data.tags["model.tokenbridge-tiny"]
    assert version.tags["metric.fd"] == "5.29"


def test_live_sync_sends_while_the_block_runs(root: Path, store: Store) -> None:
    tracker = open_tracker(root)
    with LiveSync(root, interval=0.1) as live:
        live.linked = tracker.id
        tracker.metrics({"loss": 1.0})
        deadline = time.monotonic() + 20
        while Spool(tracker.folder).has_news() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert history(store, run_of(store, tracker), "loss") == [(0, 1.0)]
        tracker.finish()
    assert find_spools(root) == []
    assert live.page == page_of(root, tracker.id) is not None


def test_the_command_line_reports_what_it_sent(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sync", str(root)])
    open_tracker(root).finish()
    running = open_tracker(root)
    assert main() == 0
    assert "2 runs sent to sqlite:///" in capsys.readouterr().err
    assert main() == 0
    assert "0 runs sent to" in capsys.readouterr().err
    running.finish()
