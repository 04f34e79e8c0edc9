"""A tracking server that starts late, dies or stays away: work goes on, and nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tokenbridge.infra.tracking.pending import find_spools
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import connect
from tokenbridge.infra.tracking.sync import LiveSync, sync_all


class Server:
    """A real ``mlflow server`` that can be killed and started again over the same files."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *address],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the server did not start")

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.kill()


def train(tracker: Tracker, start: int, stop: int) -> None:
    for step in range(start, stop):
        tracker.metrics({"loss": float(step)}, step)


def steps_of(root: Path, tracker: Tracker) -> list[int]:
    store = connect(root)
    client: MlflowClient = store.client
    (run,) = client.search_runs([store.experiment], f"tags.spool = '{tracker.id}'")
    assert run.info.status == "FINISHED"
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]


def test_without_a_server_work_goes_on_and_is_told_once(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    sync = LiveSync(tmp_path, interval=0.1)
    with sync, Tracker.open("fetch", "k", tmp_path) as tracker:
        train(tracker, 0, 10)
        while not sync.troubled:
            time.sleep(0.05)
    assert time.monotonic() - started < 30
    assert capsys.readouterr().err.count("does not take runs now") == 1
    (spool,) = find_spools(tmp_path)
    assert spool.id == tracker.id


@pytest.mark.cluster
def test_a_server_that_comes_late_gets_everything(tmp_path: Path, server: Server) -> None:
    plot = tmp_path / "plot.png"
    plot.write_text("picture")
    with (
        LiveSync(tmp_path, interval=0.1),
        Tracker.open("pipeline", "p", tmp_path) as parent,
        Tracker.open("train@tiny", "k", tmp_path, parent=parent.id) as tracker,
    ):
        train(tracker, 0, 1000)
        tracker.artifact(plot, "plots")
    server.start()
    assert sync_all(tmp_path).problem is None
    assert steps_of(tmp_path, tracker) == list(range(1000))
    assert find_spools(tmp_path) == []


@pytest.mark.cluster
def test_a_server_killed_in_the_middle_gets_the_rest_later(tmp_path: Path, server: Server) -> None:
    server.start()
    tracker = Tracker.open("train@tiny", "k", tmp_path)
    with LiveSync(tmp_path, interval=0.05) as sync:
        train(tracker, 0, 3000)
        time.sleep(1.0)
        server.kill()
        train(tracker, 3000, 6000)
        tracker.finish()
    assert sync.troubled
    server.start()
    sync_all(tmp_path)
    assert sorted(steps_of(tmp_path, tracker)) == list(range(6000))
    assert find_spools(tmp_path) == []
