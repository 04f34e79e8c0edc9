"""A tracking server that starts late, dies or stays away: work goes on, and nothing is lost."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.tracking.conftest import MlflowServer
from tests.pipeline.project import wait_for
from tokenbridge.infra.tracking.live import LiveSync
from tokenbridge.infra.tracking.pending import find_spools
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import connect
from tokenbridge.infra.tracking.sync import sync_all

pytestmark = pytest.mark.cluster


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    artifacts = ["--artifacts-destination", str(tmp_path / "artifacts")]
    server = MlflowServer(tmp_path, "server", *store, *artifacts, "--workers", "1", health="health")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    yield server
    server.kill()


def train(tracker: Tracker, start: int, stop: int) -> None:
    for step in range(start, stop):
        tracker.metrics({"loss": float(step)}, step)


def steps_of(root: Path, tracker: Tracker) -> list[int]:
    store = connect(root)
    (run,) = store.client.search_runs([store.experiment], f"tags.spool = '{tracker.id}'")
    assert run.info.status == "FINISHED"
    return [metric.step for metric in store.client.get_metric_history(run.info.run_id, "loss")]


def test_a_server_that_comes_late_and_dies_in_the_middle_gets_everything_in_the_end(
    tmp_path: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tokenbridge.infra.tracking.live.RETRY_SECONDS", 0.1)
    plot = tmp_path / "plot.png"
    plot.write_text("picture")
    started = time.monotonic()
    with (
        LiveSync(tmp_path, interval=0.05) as live,
        Tracker.open("pipeline", "p", tmp_path) as parent,
        Tracker.open("train@tiny", "k", tmp_path, parent=parent.id) as tracker,
    ):
        train(tracker, 0, 1000)
        tracker.artifact(plot, "plots")
        wait_for(lambda: live.troubled, "attempt to send")
        assert time.monotonic() - started < 30
        server.start()
        wait_for(lambda: not live.troubled, "successful attempt")
        train(tracker, 1000, 4000)
        time.sleep(1.0)
        server.kill()
        train(tracker, 4000, 6000)
    assert live.troubled
    messages = capsys.readouterr().err
    assert messages.count("does not take runs now") == 1
    assert messages.count("MLflow answers again; nothing was lost") == 1
    assert [spool.id for spool in find_spools(tmp_path)] == [parent.id, tracker.id]
    server.start()
    assert sync_all(tmp_path).problem is None
    assert sorted(steps_of(tmp_path, tracker)) == list(range(6000))
    assert find_spools(tmp_path) == []
