"""A stage's work, in this process or in those that the launcher starts.

DVC starts a stage once. That process holds the work folder, records the run and publishes what is done. The work
itself is a function ``work(context)`` of the stage module, which writes into ``context.work``: here, or under the
launcher in each of its processes (``tokenbridge.stages.worker``).
"""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenbridge.base.device import device_name, emulation_cost, has_bf16, pick_device, resolve_precision
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text
from tokenbridge.base.protocols import MetricSink, Stop, never
from tokenbridge.config import AUTO, BF16, LOCAL, Config
from tokenbridge.infra.launching import launch
from tokenbridge.infra.launching.work import LOGS
from tokenbridge.stages.runtime import StageRun

PRECISION = "precision"  # file in the work folder: what the stage computes in
NUMERIC_PRECISION = "numeric_precision"  # the same in reports and in MLflow, where precision is a metric of samples
METRICS = "metrics.jsonl"  # what the first of several processes measures while it trains
LISTEN_SECONDS = 1.0
LOG_SECONDS = 300.0  # between copies of the workers' output, as long as they work


@dataclass(frozen=True)
class StageContext:
    """A stage's work, as one of its processes sees it."""

    name: str  # such as train@base
    config: Config
    root: Path
    work: Path
    tracker: MetricSink
    device: torch.device  # where this process computes
    processes: Processes = SINGLE_PROCESS
    stop: Stop = never

    @property
    def item(self) -> str:
        """What stands behind the @ in the stage's name."""
        return self.name.partition("@")[2]

    def precision(self, setting: str) -> str:
        """bf16 or fp32, alike in all processes: rank 0 resolves ``setting``, and a resumed stage keeps what it had.

        Rank 0 prints the result, tags the run with it, and notes it in the work folder.

        Raises:
            UserError: if the stage was begun in bf16, and is resumed on a device that only emulates it.
        """
        chosen = self.processes.broadcast(begun_in(self.work) or resolve_precision(setting, self.device))
        if setting == AUTO:
            check_resumable(self.work, chosen, self.device)
        if self.processes.first:
            if chosen == BF16 and not has_bf16(self.device):
                print(f"{self.name}: {emulation_cost('precision', self.device)}", flush=True)
            print(f"{self.name}: computing in {chosen} on {device_name(self.device)}", flush=True)
            self.tracker.tags({NUMERIC_PRECISION: chosen})
            atomic_write_text(self.work / PRECISION, chosen)
        return chosen


def begun_in(work: Path) -> str | None:
    """The precision of the interrupted run that left this work folder; None if there is nothing to resume."""
    noted = work / PRECISION
    return noted.read_text() if noted.exists() else None


def check_resumable(work: Path, precision: str, device: torch.device) -> None:
    """Refuse to resume, in a precision that ``device`` only emulates, what was begun where ``auto`` chose it.

    Raises:
        UserError: saying what to do.
    """
    if precision == BF16 and not has_bf16(device):
        raise UserError(
            f"{work} was begun in bf16, which {device_name(device)} only emulates: resume on a machine that has bf16 "
            "in hardware, or delete that folder to start this stage again in float32"
        )


def compute(run: StageRun, work: Callable[[StageContext], None], *, alone: bool = False) -> None:
    """Do the work of ``run``: in this process, or under the launcher.

    Args:
        alone: the work is one process's, whatever the launcher has.

    Raises:
        LaunchError: with the last words of the process that failed.
    """
    launcher = run.config.launcher.for_one() if alone else run.config.launcher
    if launcher.kind == LOCAL and launcher.processes == 1:
        work(StageContext(run.spec.name, run.config, run.root, run.work, run.tracker, pick_device(launcher)))
        return
    with _metrics_passed_on(run.work / METRICS, run.tracker), _output_passed_on(run):
        launch([run.spec.name, str(run.root), str(run.work)], root=run.root, work=run.work, launcher=launcher)


@dataclass
class MetricFile:
    """A metric sink that another process reads; the files that it names lie beside it or below."""

    path: Path

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self._append("metrics", values=values, step=step)

    def tags(self, values: dict[str, str]) -> None:
        self._append("tags", values=values)

    def artifact(self, path: Path, folder: str = "") -> None:
        self._append("artifact", path=str(path.relative_to(self.path.parent)), folder=folder)

    def _append(self, kind: str, **fields: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"type": kind} | fields) + "\n")


@contextmanager
def _meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do ``work`` in a thread, which is told by the event when the body has ended."""
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work, ended)
        try:
            yield
        finally:
            ended.set()
            done.result()


def _metrics_passed_on(path: Path, tracker: MetricSink) -> AbstractContextManager[None]:
    """What is in the file, and is added meanwhile, goes to ``tracker``: also what was measured for a killed driver."""
    path.touch()

    def listen(ended: threading.Event) -> None:
        with path.open() as file:
            rest = ""
            while True:
                last_time = ended.is_set()
                *lines, rest = (rest + file.read()).split("\n")
                for record in filter(None, map(_record, lines)):
                    _pass_on(record, path.parent, tracker)
                if last_time:
                    return
                ended.wait(LISTEN_SECONDS)

    return _meanwhile(listen)


def _pass_on(record: dict[str, Any], work: Path, tracker: MetricSink) -> None:
    match record.pop("type"):
        case "metrics":
            tracker.metrics(**record)
        case "tags":
            tracker.tags(**record)
        case "artifact":
            tracker.artifact(work / record["path"], record["folder"])


def _output_passed_on(run: StageRun) -> AbstractContextManager[None]:
    """What the workers write is in MLflow while they work, and whole at the end."""

    def pass_on(ended: threading.Event) -> None:
        while True:
            last_time = ended.wait(LOG_SECONDS)
            for log in run.work.glob(LOGS):
                run.tracker.artifact(log, "workers")
            if last_time:
                return

    return _meanwhile(pass_on)


def _record(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:  # torn by a kill
        return None
