"""A run rebuilt from its id: the same code, settings and data, in a worktree beside your own files.

Either everything is restored from DVC's cache or remote, without computing anything, or all stages run again and what
they give is compared with what was recorded.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenbridge.commands import StageFailedError
from tokenbridge.errors import UserError
from tokenbridge.files import atomic_write_text, write_json
from tokenbridge.machine import installed_packages, processor
from tokenbridge.orchestrate import PipelineRun
from tokenbridge.params import PARAMS_FILE
from tokenbridge.repository import apply_patch, checkout, git
from tokenbridge.stage_graph import LOCK_FILE, md5_as_dvc, parse_lock, read_graph, share_cache
from tokenbridge.tracking.recorded import PROCESSOR, RecordedRun, read_recorded
from tokenbridge.tracking.spool import SPOOL_FOLDER, Tracker
from tokenbridge.tracking.sync import LiveSync

FOLDER = Path(".work/reproduce")
REPORT = "reproduction.json"
STAGE = "reproduction"
TOLERANCE = 0.1  # relative; another processor rounds otherwise, and training amplifies that
NEAR_ZERO = 1e-3  # differences below it pass as rounding too
OnLine = Callable[[str], None]


class ReproductionError(UserError):
    """A run that cannot be rebuilt."""


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was recorded."""

    what: str  # path of an out, name of a metric or package
    recorded: str
    found: str


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
        outs, metrics: how many were compared.
        machine: packages and processor that are not those of the run.
        changed: outs of another digest.
        drifted: metrics that differ, by more than the tolerance where the machine does.
    """

    run_id: str
    folder: str
    recomputed: bool
    outs: int
    metrics: int
    machine: list[Difference]
    changed: list[Difference]
    drifted: list[Difference]

    @property
    def exact(self) -> bool:
        return not self.changed and not self.drifted

    @property
    def equal(self) -> bool:
        """Whether this is the run again: the same bits; computed anew on another machine, metrics as close."""
        return self.exact or (self.recomputed and bool(self.machine) and not self.drifted)


def reproduce_run(
    root: Path, run_id: str, recompute: bool, tolerance: float = TOLERANCE, on_line: OnLine = print
) -> Reproduction:
    """Rebuild the pipeline run ``run_id`` of MLflow in a worktree under .work/reproduce.

    Args:
        recompute: run every stage again instead of restoring its outs.
        tolerance: relative difference of a metric that passes as rounding.

    Raises:
        UserError: if the run is unknown, was not recorded whole, or its data is neither in the cache nor at a remote.
    """
    recorded = read_recorded(root, run_id)
    folder = prepare(root, recorded)
    with LiveSync(root), Tracker.open(STAGE, recorded.run_id, root) as tracker:
        tracker.tags({"reproduces": recorded.run_id, "recomputed": str(recompute).lower()})
        run = PipelineRun(folder, tracker)
        _bring(run, recompute, on_line)
        result = compare(recorded, run, recompute, tolerance)
        write_json(folder / REPORT, asdict(result))
        tracker.artifact(folder / REPORT)
        tracker.tags({"equal": str(result.equal).lower(), "exact": str(result.exact).lower()})
    return result


def prepare(root: Path, recorded: RecordedRun) -> Path:
    """The worktree of a run: its commit, its changes that were not committed, its settings and its dvc.lock."""
    folder = checkout(root, root / FOLDER / recorded.run_id, recorded.commit)
    git(folder, "clean", "--quiet", "--force", "-d")
    apply_patch(folder, recorded.patch)
    atomic_write_text(folder / PARAMS_FILE, recorded.params)
    atomic_write_text(folder / LOCK_FILE, recorded.lock)
    share_cache(root, folder)
    if not (folder / SPOOL_FOLDER).exists():
        (folder / SPOOL_FOLDER).symlink_to((root / SPOOL_FOLDER).resolve())  # its runs are this project's runs
    return folder


def _bring(run: PipelineRun, recompute: bool, on_line: OnLine) -> None:
    if recompute:
        shutil.rmtree(run.root / ".work", ignore_errors=True)  # what was begun before is not this run's
        run.dvc(["repro", "--force"], on_line)
        return
    try:
        run.dvc(["checkout", "--force"], on_line)
    except StageFailedError:
        on_line("not everything is in the cache: pulling the rest from the remote")
        try:
            run.dvc(["pull", "--force"], on_line)
        except StageFailedError as error:
            raise ReproductionError(
                f"the outs of this run are neither in DVC's cache nor at a remote ({error}): "
                "`dvc push` them from where the run was made, or recompute them with --recompute"
            ) from error


def compare(recorded: RecordedRun, run: PipelineRun, recomputed: bool, tolerance: float) -> Reproduction:
    """The worktree of ``run`` against what was recorded."""
    machine = _differences(recorded.packages, installed_packages())
    machine += _differences({PROCESSOR: recorded.processor}, {PROCESSOR: processor()})
    outs = _locked_outs(recorded, run.root)
    found = {path: md5_as_dvc(run.root / path) for path in outs if (run.root / path).exists()}
    metrics = {name: value for name, value in run.metrics().items() if name in recorded.metrics}
    allowed = tolerance if machine else 0.0
    drifted = [name for name, value in metrics.items() if not _close(value, recorded.metrics[name], allowed)]
    return Reproduction(
        run_id=recorded.run_id,
        folder=str(run.root),
        recomputed=recomputed,
        outs=len(outs),
        metrics=len(metrics),
        machine=machine,
        changed=_differences(outs, found),
        drifted=[Difference(name, repr(recorded.metrics[name]), repr(metrics[name])) for name in drifted],
    )


def _locked_outs(recorded: RecordedRun, folder: Path) -> dict[str, str]:
    """Out -> md5 of the stages that its dvc.yaml has; the lock file may remember more."""
    stages = read_graph(folder)
    locked = parse_lock(recorded.lock)
    return {path: md5 for name, stage in locked.items() if name in stages for path, md5 in stage.outs.items()}


def _differences(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[Difference]:
    absent = "absent"
    return [
        Difference(name, value, found.get(name, absent))
        for name, value in recorded.items()
        if found.get(name, absent) != value
    ]


def _close(value: float, recorded: float, tolerance: float) -> bool:
    if tolerance == 0:
        return value == recorded or (math.isnan(value) and math.isnan(recorded))
    return math.isclose(value, recorded, rel_tol=tolerance, abs_tol=NEAR_ZERO)


def report(result: Reproduction) -> str:
    """The result in Markdown."""
    verdict = "the same bits" if result.exact else "metrics within the tolerance" if result.equal else "DIFFERENT"
    lines = [
        f"Run {result.run_id} {'computed anew' if result.recomputed else 'restored'} in {result.folder}: {verdict}.",
        "",
        f"- {result.outs - len(result.changed)} of {result.outs} outs have the recorded digest",
    ]
    if result.recomputed:
        lines.append(f"- {result.metrics - len(result.drifted)} of {result.metrics} metrics are as recorded")
    for title, found in (("machine", result.machine), ("outs", result.changed), ("metrics", result.drifted)):
        if found:
            lines += ["", f"| {title}: not as recorded | recorded | here |", "|---|---|---|"]
            lines += [f"| {item.what} | {item.recorded} | {item.found} |" for item in found]
    return "\n".join(lines)
