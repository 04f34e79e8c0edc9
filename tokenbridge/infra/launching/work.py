"""One piece of work for many processes: its command under torchrun, its environment, and whether it is done."""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tokenbridge
from tokenbridge.base.errors import UserError
from tokenbridge.config.launcher import LauncherConfig
from tokenbridge.infra.launching.output import RANK_PREFIX, Output

PROJECT = Path(tokenbridge.__file__).parents[1]
LOGS = "workers-*.log"  # the output of all workers of a job
COMPLETE, FAILED = "complete", "failed.txt"  # left by workers: the work is done, or no restart can help
TORCHRUN = "torch.distributed.run"


class LaunchError(RuntimeError):
    """The workers ended before their work was done. The message says how, with the failing worker's last lines."""


@dataclass(frozen=True)
class Ending:
    """How the workers ended."""

    ok: bool
    words: str  # such as "Slurm job 12 ended as FAILED"


@dataclass(frozen=True)
class ParallelWork:
    """The arguments of ``launch``."""

    arguments: tuple[str, ...]
    root: Path
    folder: Path
    launcher: LauncherConfig
    module: str

    @property
    def name(self) -> str:
        """The job's name. It depends only on the folder, so that a killed driver's job is found again."""
        return f"tokenbridge-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}"

    @property
    def complete(self) -> Path:
        return self.folder / COMPLETE

    @property
    def failed(self) -> Path:
        return self.folder / FAILED

    def log(self, job: str) -> Path:
        """Return the path of the job's output."""
        return self.folder / LOGS.replace("*", job)

    def torchrun(self, *rendezvous: str, agent: str = TORCHRUN, python: str = sys.executable) -> list[str]:
        """Return the command of one node. ``rendezvous`` holds torchrun's options for finding the other nodes."""
        return [
            *(python, "-m", agent),
            f"--nnodes={self.launcher.nodes}",
            f"--nproc-per-node={self.launcher.processes}",
            f"--max-restarts={self.launcher.max_restarts}",
            *rendezvous,
            *("--tee=3", f"--log-dir={self.folder / 'torchrun'}", f"--log-line-prefix-template={RANK_PREFIX}"),
            *("-m", self.module, *self.arguments),
        ]

    def environment(self, cores: int) -> dict[str, str]:
        """Return the variables that every worker needs besides its machine's environment.

        Args:
            cores: number of cores of each node, which its processes share.
        """
        threads = self.launcher.threads or max(1, cores // self.launcher.processes)
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        return {
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(threads),
            # in the agents' own store, stale keys can make a restart hang or use up all restarts (pytorch #135712)
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }

    def prepare(self) -> None:
        """Make the folder ready for new workers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.failed.unlink(missing_ok=True)

    def is_complete(self) -> bool:
        return self.complete.exists()

    def judge(self, ending: Ending, output: Output) -> None:
        """Return if the work is done.

        Raises:
            UserError: with the text of ``failed.txt``.
            LaunchError: if the work is not done for another reason.
        """
        if self.is_complete():  # how the processes ended after that does not matter
            return
        if self.failed.exists():
            raise UserError(self.failed.read_text(encoding="utf-8").strip())
        if ending.ok:
            raise LaunchError(f"{ending.words} before the work was done; what is done is kept: repeat to go on")
        raise LaunchError("\n".join([*output.last_lines(), ending.words]))
