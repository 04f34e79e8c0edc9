"""Start worker processes here or on Slurm, follow their output, and end them when we end."""

from collections.abc import Sequence
from pathlib import Path

from tokenbridge.config.launcher import SLURM, LauncherConfig
from tokenbridge.infra.launching import local, slurm
from tokenbridge.infra.launching.work import Output, ParallelWork

WORKER = "tokenbridge.stages.worker"


def launch(arguments: Sequence[str], *, root: Path, work: Path, launcher: LauncherConfig, module: str = WORKER) -> None:
    """Run ``python -m module arguments`` in ``nodes`` times ``processes`` workers of torchrun, until they end.

    Each line that they write goes to stdout. An exception that ends this call, such as one that a signal raises, ends
    the workers or cancels their job. If an earlier call was killed and left a job on Slurm, that job is followed and
    no other one is started.

    Args:
        root: the workers' current folder.
        work: a folder that every node sees under this path. The workers write ``complete`` into it when all is done,
            or ``failed.txt`` with an error that no restart can fix. Job script and output are kept there too.

    Raises:
        UserError: with the text of ``failed.txt`` if the workers wrote it, or with the message of the scheduler
            if it refuses.
        LaunchError: if the workers ended for another reason before the work was done. The message begins with the
            traceback of the rank that failed first, or with its last lines.
    """
    parallel = ParallelWork(tuple(arguments), root.resolve(), work.resolve(), launcher, module)
    if parallel.complete.exists():
        return
    output = Output()
    run = slurm.run if launcher.kind == SLURM else local.run
    parallel.judge(run(parallel, output), output)
