"""Everything that stages share: checked settings, a locked work folder that survives kills, tracking, publishing.

A stage writes into ``run.work`` and publishes finished results. The work folder's name depends on the stage's
parameters and inputs, so that a rerun resumes there and another configuration never does.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tokenbridge.base.console import log_to_console
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text, explain_full_disk, read_json, sha256_tree
from tokenbridge.base.locks import locked
from tokenbridge.config import Config, ConfigError
from tokenbridge.config.params import load_params
from tokenbridge.infra.dvc import StageSpec, checkout_of, is_code, read_stages
from tokenbridge.infra.git import git_tags
from tokenbridge.infra.launching import LaunchError
from tokenbridge.infra.launching.work import COMPLETE
from tokenbridge.infra.tracking.spool import Tracker

WORK = ".work"
RUN_MARKER = "run_id"
PARENT_VARIABLE = "TOKENBRIDGE_PARENT_RUN"  # set by tokenbridge.ops.runs.pipeline_run for the stages that it starts
FAILURE_CODE = 1
MISTAKE_CODE = 2  # exit code for wrong settings or files of the user: a retry would fail too
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
        if self.dvc is not None and not _lives(self.dvc):
            raise OrphanedError(f"the dvc that started this stage is gone: what is done stays in {self.work}; repeat")
        (self.work / COMPLETE).unlink(missing_ok=True)  # from here on, the work folder is incomplete
        target = self.root / out
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        shutil.move(source, target)  # copies if .work is a link to another disk


@contextmanager
def stage_run(name: str) -> Iterator[StageRun]:
    """Run the body as stage ``name`` of dvc.yaml, in the repository that is the current folder.

    A mistake of the user ends the process with only its message and ``MISTAKE_CODE``. A failure of the workers ends it
    with their last log lines and ``FAILURE_CODE``. Any other error is raised. In each case the run is recorded as
    failed and the work folder is kept.
    """
    log_to_console()
    try:
        with explain_full_disk(Path.cwd() / WORK / name), _tracked_run(name, Path.cwd()) as run:
            yield run
    except (UserError, LaunchError) as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(MISTAKE_CODE if isinstance(error, UserError) else FAILURE_CODE)


@contextmanager
def _tracked_run(name: str, root: Path) -> Iterator[StageRun]:
    config = load_params(root)
    stages = read_stages(root)
    if name not in stages:
        raise ConfigError(f"dvc.yaml has no such stage: choose one of {', '.join(stages)}")
    spec = stages[name]
    dvc = _dvc_above()
    work = root / WORK / name / spec.key
    pipeline = os.environ.get(PARENT_VARIABLE)
    checkout = checkout_of(root)  # records outlive the temporary folder of an experiment
    with _sync(checkout, pipeline), locked(Path(f"{work}.lock"), str(work)):
        work.mkdir(exist_ok=True)
        with _tracker(spec, checkout, work, pipeline) as tracker:
            if checkout != root:
                tracker.tags(git_tags(root))  # of the experiment's code
            tracker.params(spec.params)
            tracker.tags({f"dep.{path}": digest for path, digest in spec.deps.items() if not is_code(path)})
            yield StageRun(spec, config, root, work, tracker, dvc)
            _log_outs(tracker, spec, root)
        shutil.rmtree(work)  # last, when nothing can fail any more


def only_pipeline(root: Path) -> AbstractContextManager[None]:
    """Let one pipeline at a time run. DVC's own locks are not enough, because all share params.yaml and the outs.

    A process that reads these files for longer must take the lock too.
    """
    return locked(root / WORK / "pipeline.lock", f"the pipeline in {root}")


def _dvc_above() -> psutil.Process | None:
    """Return the dvc process that started this one: the parent, or an ancestor beyond the shell that dvc uses."""
    for process in psutil.Process().parents():
        with suppress(psutil.Error):  # the process is gone, or we may not read it
            if any(Path(word).name == "dvc" for word in process.cmdline()[:3]):  # [python] [-m] dvc
                return process
    return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _sync(root: Path, pipeline: str | None) -> AbstractContextManager[object]:
    """Send the run to MLflow, unless the pipeline's wrapper does it for all its stages."""
    if pipeline is not None:
        return nullcontext()
    from tokenbridge.infra.tracking.sync import LiveSync  # MLflow takes seconds to import

    return LiveSync(root)


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
            numbers = {name: value for name, value in read_json(path).items() if isinstance(value, int | float)}
            # a curve's last value would be logged at step 0, the curve's beginning
            tracker.metrics({name: value for name, value in numbers.items() if name not in tracker.curves})
