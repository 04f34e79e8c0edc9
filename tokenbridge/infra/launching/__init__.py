"""Work of many processes: started here, on Slurm or on Kubernetes, followed line by line, and ended with us."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tokenbridge.config.launcher import KUBERNETES, LOCAL, SLURM, LauncherConfig
from tokenbridge.infra.launching import kubernetes, local, slurm
from tokenbridge.infra.launching.output import Output
from tokenbridge.infra.launching.work import Ending, LaunchError, ParallelWork

__all__ = ["LaunchError", "launch"]

WORKER = "tokenbridge.stages.worker"
STARTERS: dict[str, Callable[[ParallelWork, Output], Ending]] = {
    LOCAL: local.run,
    SLURM: slurm.run,
    KUBERNETES: kubernetes.run,
}


def launch(arguments: Sequence[str], *, root: Path, work: Path, launcher: LauncherConfig, module: str = WORKER) -> None:
    """Run ``python -m module arguments`` as ``nodes`` times ``processes`` workers of torchrun, to their end.

    Each line that they write goes to stdout. SIGTERM and Ctrl-C end the workers, or cancel their job. A job of Slurm
    or Kubernetes that an earlier, killed call left is followed instead of starting another.

    Args:
        root: the workers' current folder.
        work: a folder that every node sees under this path. The workers write ``complete`` into it when all is done,
            or ``failed.txt`` with a mistake that no restart mends; job script and output are kept there.

    Raises:
        UserError: with the workers' own words, if they wrote ``failed.txt``; or the scheduler's, if it refuses.
        LaunchError: if they ended otherwise without being done; the last lines of the failing rank come first.
    """
    parallel = ParallelWork(tuple(arguments), root.resolve(), work.resolve(), launcher, module)
    if parallel.is_complete():
        return
    output = Output()
    with _sigterm_unwinds():
        ending = STARTERS[launcher.kind](parallel, output)
    parallel.judge(ending, output)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM leaves through ``finally``, as Ctrl-C does; a second one does not disturb what is done there."""

    def leave(signum: int, _frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_IGN)
        sys.exit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
