"""A stage's work, in this process or in processes that the launcher starts.

DVC starts a stage once. That process holds the work folder, records the run and publishes what is done. The work
itself is a function ``work(context)`` of the stage module, which writes into ``context.work``. It runs in this process,
or in each process that the launcher starts (``tokenbridge.stages.worker``).
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenbridge.base.at_end import at_end
from tokenbridge.base.checks import AUTO, BF16, Precision
from tokenbridge.base.device import device_name, emulation_cost, has_bf16, pick_device, resolve_precision
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text
from tokenbridge.base.protocols import MetricSink, Stop, never
from tokenbridge.config import Config
from tokenbridge.config.launcher import LOCAL
from tokenbridge.infra.launching import launch
from tokenbridge.infra.launching.following import GrowingFile
from tokenbridge.infra.launching.work import LOGS
from tokenbridge.stages.runtime import PRECISION, StageRun, begun_in

logger = logging.getLogger(__name__)

NUMERIC_PRECISION = "numeric_precision"  # its name in reports and in MLflow, where precision is a metric of samples
METRICS = "metrics.jsonl"  # metrics of the first of several processes
LISTEN_SECONDS = 1.0
LOG_SECONDS = 300.0  # between copies of the workers' output while they run


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
        """The part of the stage's name after the @."""
        return self.name.partition("@")[2]

    def precision(self, setting: Precision) -> Precision:
        """Return bf16 or fp32, the same in all processes. Rank 0 resolves ``setting``.

        A resumed stage keeps its precision. Rank 0 also prints the precision, tags the run with it, and writes it to
        the work folder.

        Raises:
            UserError: if ``setting`` is auto, and a stage begun in bf16 resumes on a device that only emulates it.
        """
        chosen = self.processes.broadcast(begun_in(self.work) or resolve_precision(setting, self.device))
        if setting == AUTO:
            check_resumable(self.work, chosen, self.device)
        if self.processes.first:
            if chosen == BF16 and not has_bf16(self.device):
                logger.info(f"{self.name}: {emulation_cost('precision', self.device)}")
            logger.info(f"{self.name}: computing in {chosen} on {device_name(self.device)}")
            self.tracker.tags({NUMERIC_PRECISION: chosen})
            atomic_write_text(self.work / PRECISION, chosen)
        return chosen


def check_resumable(work: Path, precision: str, device: torch.device) -> None:
    """Refuse to resume a stage that was begun in bf16, on a device that only emulates bf16.

    Raises:
        UserError: if ``precision`` is bf16 and ``device`` only emulates it. The message says what to do.
    """
    if precision == BF16 and not has_bf16(device):
        raise UserError(
            f"{work} was begun in bf16, which {device_name(device)} only emulates: resume on a machine that has bf16 "
            "in hardware, or delete that folder to start this stage again in float32"
        )


def compute(run: StageRun, work: Callable[[StageContext], None], *, alone: bool = False) -> None:
    """Do the work of ``run`` in this process, or in processes that the launcher starts.

    Args:
        alone: use a single process, even if the launcher has more.

    Raises:
        LaunchError: with the last log lines of the process that failed.
    """
    launcher = run.config.launcher.for_one() if alone else run.config.launcher
    if launcher.kind == LOCAL and launcher.processes == 1:
        work(StageContext(run.spec.name, run.config, run.root, run.work, run.tracker, pick_device(launcher)))
        return
    with _passed_on(run.work, run.tracker):
        launch([run.spec.name, str(run.root), str(run.work)], root=run.root, work=run.work, launcher=launcher)


@dataclass
class MetricFile:
    """A metric sink that writes to a file, which another process reads. Artifacts must lie in the file's folder."""

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
def _passed_on(work: Path, tracker: MetricSink) -> Iterator[None]:
    """Send what workers measure to ``tracker`` while the body runs, and their output every ``LOG_SECONDS``.

    The file of metrics may already hold some that workers measured for a driver that was killed. They are sent too.
    """
    ended = threading.Event()

    def end() -> None:
        ended.set()
        done.result()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(_pass_on, work, tracker, ended)
        with at_end(end):
            yield


def _pass_on(work: Path, tracker: MetricSink, ended: threading.Event) -> None:
    measured, logged, last_time = GrowingFile(work / METRICS), time.monotonic(), False
    while not last_time:
        last_time = ended.wait(LISTEN_SECONDS)
        for line in measured.lines():
            _send(line, work, tracker)
        if last_time or time.monotonic() - logged >= LOG_SECONDS:
            for log in work.glob(LOGS):
                tracker.artifact(log, "workers")
            logged = time.monotonic()


def _send(line: str, work: Path, tracker: MetricSink) -> None:
    try:
        record = json.loads(line)
    except ValueError:  # a line that a kill cut short
        return
    match record.pop("type"):
        case "metrics":
            tracker.metrics(**record)
        case "tags":
            tracker.tags(**record)
        case "artifact":
            tracker.artifact(work / record["path"], record["folder"])
