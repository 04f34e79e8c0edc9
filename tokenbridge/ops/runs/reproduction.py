"""Reproduction of a run from its id: the same code, settings and data, in a worktree beside your own files.

Either all outs are restored from DVC's cache or remote without computing anything, or all stages run again and their
results are compared with the recorded ones.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text, write_json
from tokenbridge.base.locks import locked
from tokenbridge.base.machine import installed_packages, processor
from tokenbridge.base.subprocesses import StageFailedError
from tokenbridge.config.params import PARAMS_FILE
from tokenbridge.infra.dvc import LOCK_FILE, md5_as_dvc, parse_lock, read_stages, share_cache
from tokenbridge.infra.git import apply_patch, checkout, git
from tokenbridge.infra.tracking.live import LiveSync
from tokenbridge.infra.tracking.recorded import PROCESSOR, RecordedRun, read_recorded
from tokenbridge.infra.tracking.spool import Tracker, share_spool
from tokenbridge.ops.runs.pipeline_run import FETCH, PipelineRun
from tokenbridge.stages.runtime import WORK

FOLDER = Path(".work/reproduce")
IMAGES = "data/images"
ABSENT = "absent"
REPORT = "reproduction.json"
STAGE = "reproduction"
TOLERANCE = 0.1  # relative; another processor rounds differently, and training amplifies that
NEAR_ZERO = 1e-3  # smaller absolute differences pass as rounding too
OnLine = Callable[[str], None]


class ReproductionError(UserError):
    """A run that cannot be rebuilt."""


@dataclass(frozen=True)
class Difference:
    """A value that differs from the recorded one."""

    what: str  # path of an out, name of a metric or package
    recorded: str
    found: str


@dataclass(frozen=True)
class Reproduction:
    """The result of reproducing a run.

    Attributes:
        outs, metrics: how many were compared; metrics are compared only if they were recomputed.
        machine: packages and processor that differ from the run's, and files that were not recorded.
        changed: outs with another digest.
        drifted: metrics that differ; if ``machine`` is not empty, those that differ by more than the tolerance.
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
        """Whether the run was reproduced.

        Its outs and metrics must be the same bits. If it was recomputed and ``machine`` is not empty, it is enough that
        every out exists and every metric is within the tolerance.
        """
        complete = all(item.found != ABSENT for item in self.changed)
        return self.exact or (self.recomputed and bool(self.machine) and complete and not self.drifted)


def reproduce_run(
    root: Path, run_id: str, recompute: bool, *, trust: bool = False, on_line: OnLine = print
) -> Reproduction:
    """Rebuild the pipeline run ``run_id`` of MLflow in a worktree under .work/reproduce.

    Args:
        recompute: run every stage again instead of restoring its outs.
        trust: execute the run's uncommitted changes, which ``recompute`` needs. A restored run executes nothing of
            them.

    Raises:
        UserError: if the run is unknown or its record incomplete, or its data is neither in the cache nor at a remote;
            or if its changes would be executed without ``trust``.
    """
    recorded = read_recorded(root, run_id)
    if recompute and recorded.patch and not trust:
        on_line(recorded.patch.decode(errors="replace"))
        raise ReproductionError(
            f"run {run_id} had uncommitted changes, which are shown above and would be executed: "
            "read them, and repeat with --trust"
        )
    lock = root / FOLDER / f"{recorded.run_id}.lock"
    with locked(lock, f"run {run_id}"), LiveSync(root), Tracker.open(STAGE, recorded.run_id, root) as tracker:
        folder = prepare(root, recorded)
        tracker.tags({"reproduces": recorded.run_id, "recomputed": str(recompute).lower()})
        run = PipelineRun(folder, tracker)
        _bring(run, recompute, on_line)
        result = compare(recorded, run, recompute)
        write_json(folder / REPORT, asdict(result))
        tracker.artifact(folder / REPORT)
        tracker.tags({"equal": str(result.equal).lower(), "exact": str(result.exact).lower()})
    return result


def prepare(root: Path, recorded: RecordedRun) -> Path:
    """Make the worktree of a run: its commit, its uncommitted changes, its settings and its dvc.lock."""
    folder = checkout(root, root / FOLDER / recorded.run_id, recorded.commit)
    git(folder, "clean", "--quiet", "--force", "-d")
    apply_patch(folder, recorded.patch)
    atomic_write_text(folder / PARAMS_FILE, recorded.params)
    atomic_write_text(folder / LOCK_FILE, recorded.lock)
    share_cache(root, folder)
    share_spool(root, folder)
    return folder


def _bring(run: PipelineRun, recompute: bool, on_line: OnLine) -> None:
    if not recompute:
        _restore(run, [], on_line)
        return
    shutil.rmtree(run.root / WORK, ignore_errors=True)  # unfinished work there may be of an earlier attempt
    with suppress(ReproductionError):  # if the images cannot be restored, fetch runs again
        _restore(run, [IMAGES], on_line)  # preferred, because their source may have grown since
    run.dvc(["repro", "--single-item", FETCH], on_line)
    computed = [stage for stage in read_stages(run.root) if stage != FETCH]
    run.dvc(["repro", "--force", "--single-item", *computed], on_line)


def _restore(run: PipelineRun, outs: Sequence[str], on_line: OnLine) -> None:
    """Restore these outs, or all outs if none are named, from the cache or the remote."""
    try:
        run.dvc(["checkout", "--force", *outs], on_line)
    except StageFailedError:
        on_line("not everything is in the cache: pulling the rest from the remote")
        try:
            run.dvc(["pull", "--force", *outs], on_line)
        except StageFailedError as error:
            raise ReproductionError(
                f"what this run made is not in DVC's cache, and no remote gives it ({error}): see that the remote "
                "answers, `dvc push` from where the run was made, or recompute it with --recompute"
            ) from error


def compare(recorded: RecordedRun, run: PipelineRun, recomputed: bool) -> Reproduction:
    """Compare the worktree of ``run`` with what was recorded."""
    machine = _differences(recorded.packages, installed_packages())
    machine += _differences({PROCESSOR: recorded.processor}, {PROCESSOR: processor()})
    machine += [Difference(file, "not recorded", ABSENT) for file in recorded.left_out]
    stages = read_stages(run.root)  # the lock file may hold more, and the metrics have copies for tables
    locked = [stage for name, stage in parse_lock(recorded.lock).items() if name in stages]
    outs = {path: md5 for stage in locked for path, md5 in stage.outs.items()}
    found = {path: md5_as_dvc(run.root / path) for path in outs if (run.root / path).exists()}
    here, close = run.metrics(), _close if machine else _same
    names = {stage.replace("@", "_") for stage in stages} if recomputed else set()
    metrics = {name: value for name, value in recorded.metrics.items() if name.partition("/")[0] in names}
    drifted = [name for name, value in metrics.items() if name not in here or not close(here[name], value)]
    return Reproduction(
        run_id=recorded.run_id,
        folder=str(run.root),
        recomputed=recomputed,
        outs=len(outs),
        metrics=len(metrics),
        machine=machine,
        changed=_differences(outs, found),
        drifted=[Difference(name, repr(metrics[name]), repr(here.get(name, ABSENT))) for name in drifted],
    )


def _differences(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[Difference]:
    return [
        Difference(name, value, found.get(name, ABSENT))
        for name, value in recorded.items()
        if found.get(name, ABSENT) != value
    ]


def _same(value: float, recorded: float) -> bool:
    return value == recorded or (math.isnan(value) and math.isnan(recorded))


def _close(value: float, recorded: float) -> bool:
    return math.isclose(value, recorded, rel_tol=TOLERANCE, abs_tol=NEAR_ZERO)


def report(result: Reproduction) -> str:
    """Format the result as Markdown."""
    verdict = "the same bits" if result.exact else "metrics within the tolerance" if result.equal else "DIFFERENT"
    lines = [
        f"Run {result.run_id} {'computed again' if result.recomputed else 'restored'} in {result.folder}: {verdict}.",
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
