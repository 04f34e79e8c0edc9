"""One execution of the pipeline: the parent run around DVC's stages, shared by ``tokenbridge repro`` and the flow.

A bare ``dvc repro`` runs no code of this project for skipped stages or after the last stage. This module does.
"""

import logging
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tokenbridge.base.at_end import at_end
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import check_access, explain_disk_error, read_json, sha256_file
from tokenbridge.base.locks import locked
from tokenbridge.base.machine import installed_packages, processor
from tokenbridge.base.subprocesses import Command, StageFailedError
from tokenbridge.config import Config
from tokenbridge.config.params import PARAMS_FILE, load_params, write_params
from tokenbridge.infra.dvc import (
    CACHED,
    FAILED,
    LOCK_FILE,
    RAN,
    SKIPPED,
    StageSpec,
    clear_busy_paths,
    drop_damaged,
    read_outcome,
    read_pipeline,
    read_stages,
    share_cache,
)
from tokenbridge.infra.git import RepositoryError, checkout, git, uncommitted
from tokenbridge.infra.tracking import recorded
from tokenbridge.infra.tracking.live import LiveSync
from tokenbridge.infra.tracking.pages import DISTANCES, HEADLINES
from tokenbridge.infra.tracking.process import MLflowProcess
from tokenbridge.infra.tracking.spool import Tracker, share_spool
from tokenbridge.infra.tracking.uri import tracking_uri
from tokenbridge.ops.runs.forecast import DURATIONS, Forecast
from tokenbridge.ops.runs.freshness import is_of, is_stale, note_fetched, planned_settings
from tokenbridge.ops.runs.outs import expose_damaged, note_verified
from tokenbridge.ops.runs.precision_check import check_precision
from tokenbridge.sources.state import source_state
from tokenbridge.stages.runtime import PARENT_VARIABLE, only_pipeline
from tokenbridge.training.parts import check_processes

logger = logging.getLogger(__name__)

LONGEST = 200  # characters of a title or a list
FETCH = "fetch"
ENDED = "the pipeline has ended"
REGISTRATION = "tokenbridge.ops.promotion.registration"
WRITTEN = (  # patterns of what a run changes
    *(".work", ".work/*", ".work/*/*", ".spool", ".spool/*", "data", "data/*", "models", "models/*", "reports"),
    *("reports/*", ".dvc/tmp", ".dvc/tmp/*", ".dvc/cache", ".dvc/cache/files/md5", ".dvc/cache/files/md5/*"),
    *(LOCK_FILE, PARAMS_FILE),
)


@dataclass
class PipelineRun:
    """The parent run and the outcome of each stage."""

    root: Path
    tracker: Tracker
    outcomes: dict[str, str] = field(default_factory=dict)  # stage -> ran | skipped | cached | failed
    source_state: str | None = None  # of the images' source; None until it was read
    forecast: Forecast | None = None  # None before the first command
    sync: LiveSync | None = None  # its ``page`` is the run's address, when the run has ended
    config: Config | None = None  # its precision is checked before a stage runs; None: settings of another version
    _command: Command | None = None  # the last dvc command
    _ended: bool = False
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def dvc(self, arguments: Sequence[str], on_line: Callable[[str], None]) -> None:
        """Run a dvc command, pass on its output, note the outcome of each stage and report the stages still to come.

        Python's option -P keeps modules of the run's own checkout, such as a dvc.py, from being imported in its place.

        Raises:
            StageFailedError: if the command fails.
        """
        coming = self._coming(on_line)

        def note(line: str) -> None:
            on_line(line)
            coming.listen(line, on_line)
            for stage, outcome in read_outcome(line).items():
                if stage != FETCH:
                    self.note_source()  # now, because a kill may come before the end
                if (self.outcomes.get(stage), outcome) != (RAN, SKIPPED):  # a later command skips what this run ran
                    self.outcomes[stage] = outcome
                coming.note(stage, outcome, on_line)

        environment = {PARENT_VARIABLE: self.tracker.id}
        with self._starting:
            if self._ended:
                raise StageFailedError(ENDED)
            self._command = Command([sys.executable, "-Pm", "dvc", *arguments], self.root, environment)
        try:
            self._command.follow(note)
        except BaseException:
            coming.running = None  # it still has to run
            raise
        coming.end(on_line)

    def repro(self, on_line: Callable[[str], None]) -> None:
        """Run every stage that is stale. If none is, dvc is not started, because that takes seconds.

        Raises:
            StageFailedError: if a stage fails.
        """
        if self._coming(on_line).left:
            self.dvc(["repro"], on_line)
        else:
            self.outcomes = dict.fromkeys(self._stages, SKIPPED)

    def bring_up_to_date(self, stage: str, on_line: Callable[[str], None]) -> str:
        """Run one stage if it is stale, and return its outcome. The stages that it needs must be up to date.

        If nothing that the stage depends on has changed, dvc is not started, because that takes a second.

        Raises:
            StageFailedError: if the stage fails.
        """
        coming = self._coming(on_line)
        if stage in coming.left:
            # --wait-for-lock: dvc holds its lock while it hashes, and another stage may be starting
            self.dvc(["--wait-for-lock", "repro", "--single-item", stage], on_line)
            return self.outcomes.setdefault(stage, RAN)
        on_line(f"Stage '{stage}' didn't change, skipping")
        return self.outcomes.setdefault(stage, SKIPPED)

    def end(self) -> None:
        """Let no further command start, and stop one that another thread left running, as in a cancelled flow."""
        with self._starting:
            self._ended = True
        if self._command:
            self._command.stop()

    def fetch_if_changed(self, on_line: Callable[[str], None]) -> None:
        """Fetch the images again if their source has changed, because DVC does not watch it.

        Raises:
            StageFailedError: if the fetch fails.
        """
        config = self.config or load_params(self.root)
        try:
            state = source_state(config.data, config.storage)
        except UserError:
            return  # if fetch has to run, it reports the error
        if is_stale(self.root, config, state):
            on_line("the source of the images has changed, or its state is unknown: fetching it again")
            self._expect(list(self._stages), on_line)
            self.dvc(["--wait-for-lock", "repro", "--force", "--single-item", FETCH], on_line)
        self.source_state = state

    def note_source(self) -> None:
        """Note the state of the source that this run has fetched."""
        if self.source_state and self.outcomes.get(FETCH) == RAN:
            note_fetched(self.root, self.source_state)

    def _coming(self, on_line: Callable[[str], None]) -> Forecast:
        """Return the forecast of the stages that may still have to run; the first call makes it."""
        return self.forecast or self._expect(self._pipeline[1], on_line)

    def _expect(self, names: Sequence[str], on_line: Callable[[str], None]) -> Forecast:
        """Forecast these stages, after a check of their precision and of what DVC may restore in their place."""
        if names and self.config:
            check_precision(self.root, self.config, self._stages.values())
        for out in drop_damaged(self.root, [self._stages[name] for name in names]):
            on_line(f"{out} was damaged in DVC's cache: it is removed there, and made again if it is needed")
        self.forecast = Forecast(self.root / DURATIONS, names)
        return self.forecast

    def outs(self) -> dict[str, list[Path]]:
        """Return stage -> outs, for the stages of this run that did not fail."""
        stages = self._stages
        finished = [name for name in self.outcomes if name in stages and self.outcomes[name] != FAILED]
        return {name: [self.root / out for out in stages[name].outs] for name in finished}

    @cached_property
    def _pipeline(self) -> tuple[dict[str, StageSpec], list[str]]:
        """The stages before the run, and those that may have to run, read once: dvc takes a second for it."""
        return read_pipeline(self.root)

    @property
    def _stages(self) -> dict[str, StageSpec]:
        return self._pipeline[0]

    def stages(self) -> dict[str, StageSpec]:
        """Return the stages as they are now."""
        return read_stages(self.root) if self._command else self._stages

    def evaluated(self) -> list[str]:
        """Return the models whose evaluation did not fail."""
        return [name.removeprefix("evaluate@") for name in self.outs() if name.startswith("evaluate@")]

    def metrics(self) -> dict[str, float]:
        """Return every metric of the stages in ``outs``, as ``<stage>/<metric>``."""
        metrics: dict[str, float] = {}
        for name, outs in self.outs().items():
            for path in [out for out in outs if out.suffix == ".json" and out.exists()]:
                content = read_json(path)
                metrics |= {f"{name}/{key}": value for key, value in content.items() if isinstance(value, int | float)}
        return {key.replace("@", "_"): value for key, value in metrics.items()}

    def headlines(self) -> tuple[str, dict[str, float]] | None:
        """Return the best evaluated model and the metrics that a table of runs compares, or None.

        The metrics have the names that the model's own stages give them.
        """
        metrics = self.metrics()
        found: dict[str, dict[str, float]] = {}
        for model in self.evaluated():
            keys = {f"{stage}_{model}/{name}": name for stage in ("evaluate", "train") for name in HEADLINES}
            found[model] = {name: metrics[key] for key, name in keys.items() if key in metrics}
        distances = {model: values[name] for model, values in found.items() for name in DISTANCES if name in values}
        best = min(distances, key=distances.__getitem__, default=None)
        return (best, found[best]) if best else None

    def sample_grids(self) -> list[Path]:
        pictures = [out for name, outs in self.outs().items() for out in outs if name.startswith("generate")]
        return [out for out in pictures if out.suffix == ".png" and out.exists()]


def title(what: str, overrides: Sequence[str]) -> str:
    """Return a name for a run that distinguishes it from others in MLflow's and Prefect's pages."""
    return shortened(" ".join([what, *overrides]))


def shortened(words: str) -> str:
    """Return as many of the words as a line takes."""
    return textwrap.shorten(words, LONGEST, placeholder=" ...")


@contextmanager
def pipeline_run(
    root: Path, overrides: Sequence[str] = (), mlflow: MLflowProcess | None = None
) -> Iterator[PipelineRun]:
    """Open the parent run. At the end, even after an error, record stages, lock file and metrics in it.

    Overrides are composed into params.yaml first, as ``dvc exp run -S`` does. ``mlflow`` ends with the run.

    Raises:
        ConfigError: if the settings are invalid, before anything runs.
        AccessError: if something that a run changes belongs to somebody else.
    """
    with (
        mlflow or MLflowProcess(REGISTRATION) as process,
        _prepared(root, overrides) as config,
        LiveSync(root, process=process) as sync,
    ):
        key, name = sha256_file(root / PARAMS_FILE), title(recorded.PIPELINE, overrides)
        with Tracker.open(recorded.PIPELINE, key, root, name=name) as tracker:
            names = {"data": config.data.name, "models": ", ".join(config.models)}
            tracker.params({"overrides": " ".join(overrides)} | names)
            _record_origin(tracker, root)
            sync.linked = tracker.id
            run = PipelineRun(root, tracker, sync=sync, config=config)
            with at_end(lambda: _record(run, process)):
                if damaged := expose_damaged(root):
                    outs = shortened(", ".join(damaged))
                    logger.info(f"restored or made again, because {LOCK_FILE} records other files: {outs}")
                yield run


@contextmanager
def _prepared(root: Path, overrides: Sequence[str]) -> Iterator[Config]:
    """Check the settings and the files, and let no other pipeline run."""
    config, _ = planned_settings(root, overrides)  # before a possibly long wait for the lock
    for model in config.models.values():
        if model.pretrained is None:
            check_processes(model.train, config.launcher, config.launcher.nodes * config.launcher.processes)
    check_access(*(path for pattern in WRITTEN for path in root.glob(pattern)))
    with only_pipeline(root):
        if overrides:
            write_params(overrides, root)
        clear_busy_paths(root)
        yield config


def _record_origin(tracker: Tracker, root: Path) -> None:
    """Record what is needed to rebuild the run besides commit, settings and data."""
    tracker.tags({recorded.PROCESSOR: processor()})
    with tempfile.TemporaryDirectory() as scratch, explain_disk_error(Path(scratch, recorded.PATCH_FILE)):
        packages = Path(scratch) / recorded.PACKAGES_FILE
        packages.write_text("".join(f"{name}=={version}\n" for name, version in sorted(installed_packages().items())))
        tracker.artifact(packages)
        with suppress(RepositoryError):  # without git there are no changes to record
            changes = uncommitted(root)
            if changes.left_out:
                tracker.tags({recorded.LEFT_OUT: ", ".join(changes.left_out)})
            patch = Path(scratch) / recorded.PATCH_FILE
            patch.write_bytes(changes.patch)
            tracker.artifact(patch)


def _record(run: PipelineRun, mlflow: MLflowProcess) -> None:
    run.end()
    stages = run.stages()
    for name, outcome in run.outcomes.items():
        run.tracker.tags({f"stage.{name}": outcome})
        if outcome in (SKIPPED, CACHED) and name in stages:
            run.tracker.reused(name, stages[name].key)
    run.tracker.artifact(run.root / PARAMS_FILE)
    lock = run.root / LOCK_FILE
    if lock.exists():
        note_verified(run.root, [str(out.relative_to(run.root)) for outs in run.outs().values() for out in outs])
        run.tracker.artifact(lock)
        run.tracker.tags({recorded.LOCK_DIGEST: sha256_file(lock)})
    run.tracker.metrics(run.metrics())
    if headlines := run.headlines():
        run.tracker.tags({"model": headlines[0]})
        run.tracker.metrics(headlines[1])
    for grid in run.sample_grids():
        run.tracker.artifact(grid, "samples")
    run.note_source()
    if run.source_state and is_of(run.root, run.config or load_params(run.root), run.source_state):
        run.tracker.tags({recorded.SOURCE_STATE: run.source_state})
    mlflow.call(f"{REGISTRATION}:register_models", run.root, run.evaluated(), run.tracker.id)


def run_pipeline(root: Path, overrides: Sequence[str] = (), mlflow: MLflowProcess | None = None) -> None:
    """Run ``dvc repro`` under a parent run."""
    with pipeline_run(root, overrides, mlflow) as run:
        run.fetch_if_changed(logger.info)
        run.repro(logger.info)
    if run.outcomes and set(run.outcomes.values()) <= {SKIPPED, CACHED}:
        logger.info("\nEverything is up to date: no stage had anything to do.")


def only_user(root: Path, folder: Path) -> AbstractContextManager[None]:
    """Let one process at a time use the worktree ``folder``, from the start of a run until its reports are read."""
    return locked(root / folder.with_suffix(".lock"), f"the worktree {folder}")


def run_in_worktree(root: Path, folder: Path, overrides: Sequence[str], on_line: Callable[[str], None]) -> Path:
    """Run ``tokenbridge repro`` in a worktree of the last commit, with this project's cache and MLflow.

    Your own files do not change. The caller must be the ``only_user`` of the worktree.

    Returns:
        The worktree, which holds the run's reports.

    Raises:
        StageFailedError: if the pipeline fails.
    """
    worktree = checkout(root, root / folder, git(root, "rev-parse", "HEAD"))
    share_cache(root, worktree)
    share_spool(root, worktree)
    environment = {"PYTHONPATH": str(worktree), "MLFLOW_TRACKING_URI": tracking_uri(root)}
    Command([sys.executable, "-m", "tokenbridge.cli", "repro", *overrides], worktree, environment).follow(on_line)
    return worktree
