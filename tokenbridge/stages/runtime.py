"""Everything that stages share: checked settings, a locked work folder that survives kills, tracking, publishing.

A stage writes into ``run.work`` and publishes finished results. The work folder's name depends on the stage's
parameters and inputs, so that a rerun resumes there and another configuration never does.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil

from tokenbridge.base.checks import Precision
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import (
    atomic_folder,
    atomic_write_text,
    clear_scratch,
    explain_disk_error,
    read_json,
    sha256_tree,
)
from tokenbridge.base.locks import locked
from tokenbridge.base.program import MISTAKE_CODE as MISTAKE_CODE
from tokenbridge.base.program import program
from tokenbridge.base.subprocesses import end_with, lives
from tokenbridge.config import Config, ConfigError
from tokenbridge.config.params import load_params
from tokenbridge.infra.dvc import StageSpec, checkout_of, is_code, is_dvc, read_stages
from tokenbridge.infra.git import git_tags
from tokenbridge.infra.launching.work import COMPLETE
from tokenbridge.infra.tracking.live import LiveSync
from tokenbridge.infra.tracking.spool import Tracker

WORK = ".work"
RUN_MARKER = "run_id"
PRECISION = "precision"  # file in the work folder that holds the stage's precision
PARENT_VARIABLE = "TOKENBRIDGE_PARENT_RUN"  # set by tokenbridge.ops.runs.pipeline_run for the stages that it starts
LOGGED_BYTES = 20_000_000  # an out up to this size is logged with its files, a larger one only as its digest


class OrphanedError(UserError):
    """The stage outlived the dvc that started it. A rerun waits for this stage to end, and continues its work."""


@dataclass(frozen=True)
class StageRun:
    """One execution of a stage."""

    spec: StageSpec
    config: Config
    root: Path
    work: Path
    tracker: Tracker
    dvc: psutil.Process | None  # the process that started the stage; None if it was started by hand

    def publish(self, source: Path, out: str) -> None:
        """Move a finished file or folder to its place, and replace what was there.

        Raises:
            OrphanedError: if dvc was killed meanwhile. Another dvc may be running there, with other settings.
        """
        if self.dvc is not None and not lives(self.dvc):
            raise OrphanedError(f"the dvc that started this stage is gone: what is done stays in {self.work}; repeat")
        (self.work / COMPLETE).unlink(missing_ok=True)  # from here on, the work folder is incomplete
        place = self.root / out
        clear_scratch(place.parent, place.name)
        with atomic_folder(place) as target:
            shutil.move(source, target)  # copies if .work is a link to another disk


@contextmanager
def stage_run(name: str) -> Iterator[StageRun]:
    """Run the body as stage ``name`` of dvc.yaml, in the repository that is the current folder.

    An error ends the process with one line, a mistake of the user with ``MISTAKE_CODE``. A failure of the workers shows
    their last log lines. In each case the run is recorded as failed and the work folder is kept.
    """
    with program(name, MISTAKE_CODE):
        # the parent, or an ancestor beyond the shell that dvc uses
        dvc = next((process for process in psutil.Process().parents() if is_dvc(process)), None)
        end_with(signal.SIGTERM, *([dvc.pid] if dvc else []))
        with explain_disk_error(Path.cwd() / WORK / name), _tracked_run(name, Path.cwd(), dvc) as run:
            yield run


@contextmanager
def _tracked_run(name: str, root: Path, dvc: psutil.Process | None) -> Iterator[StageRun]:
    config = load_params(root)
    stages = read_stages(root)
    if name not in stages:
        raise ConfigError(f"dvc.yaml has no such stage: choose one of {', '.join(stages)}")
    spec = stages[name]
    work = root / WORK / name / spec.key
    pipeline = os.environ.get(PARENT_VARIABLE)
    checkout = checkout_of(root)  # records outlive the temporary folder of an experiment
    sends = pipeline is None  # else the pipeline's wrapper sends the runs of all its stages to MLflow
    with LiveSync(checkout) if sends else nullcontext(), locked(Path(f"{work}.lock"), str(work)):
        work.mkdir(exist_ok=True)
        with _tracker(spec, checkout, work, pipeline) as tracker:
            if checkout != root:
                tracker.tags(git_tags(root))  # of the experiment's code
            tracker.params(spec.params)
            tracker.tags({f"dep.{path}": digest for path, digest in spec.deps.items() if not is_code(path)})
            yield StageRun(spec, config, root, work, tracker, dvc)
            _log_outs(tracker, spec, root)
        shutil.rmtree(work)  # last, when nothing can fail any more


def begun_in(work: Path) -> Precision | None:
    """Return the precision of the interrupted run that left this work folder, or None if there was none."""
    noted = work / PRECISION
    return cast(Precision, noted.read_text()) if noted.exists() else None


def only_pipeline(root: Path) -> AbstractContextManager[None]:
    """Let one pipeline at a time run. DVC's own locks are not enough, because all share params.yaml and the outs.

    A process that reads these files for longer must take the lock too.
    """
    return locked(root / WORK / "pipeline.lock", f"the pipeline in {root}")


def _tracker(spec: StageSpec, root: Path, work: Path, pipeline: str | None) -> Tracker:
    marker = work / RUN_MARKER  # exists only if an earlier run was interrupted
    resumed_from = marker.read_text() if marker.exists() else None
    tracker = Tracker.open(spec.name, spec.key, root, pipeline, resumed_from)
    atomic_write_text(marker, tracker.id)
    return tracker


def _log_outs(tracker: Tracker, spec: StageSpec, root: Path) -> None:
    """Log every out: always its path, size and digest, and its files if it is small."""
    for out in spec.outs:
        path = root / out
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        size = sum(file.stat().st_size for file in files)
        tracker.tags({f"out.{out}": f"sha256:{sha256_tree(path)} {size} bytes"})
        if size <= LOGGED_BYTES:
            for file in files:
                tracker.artifact(file, str(file.parent.relative_to(root)))
        if out.startswith("reports/") and out.endswith(".json"):
            content = read_json(path)
            tracker.params({name: value for name, value in content.items() if isinstance(value, dict)})
            numbers = {name: value for name, value in content.items() if isinstance(value, int | float)}
            # a curve's last value would be logged at step 0, the curve's beginning
            tracker.metrics({name: value for name, value in numbers.items() if name not in tracker.curves})
