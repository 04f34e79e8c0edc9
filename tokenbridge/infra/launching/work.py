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
LOGS = "workers-*.log"  # what all workers wrote, by their job
COMPLETE, FAILED = "complete", "failed.txt"  # what workers leave in their folder: all is done, or none can mend it
TORCHRUN = "torch.distributed.run"


class LaunchError(RuntimeError):
    """The workers ended before their work was done; the message says how, and what the failing one wrote last."""


@dataclass(frozen=True)
class Ending:
    """How the workers ended."""

    ok: bool
    words: str  # such as "Slurm job 12 ended as FAILED"


@dataclass(frozen=True)
class ParallelWork:
    """What ``launch`` was asked for."""

    arguments: tuple[str, ...]
    root: Path
    folder: Path
    launcher: LauncherConfig
    module: str

    @property
    def name(self) -> str:
        """Of the job; the same for the same folder, by which a killed driver's job is found again."""
        return f"tokenbridge-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}"

    @property
    def complete(self) -> Path:
        return self.folder / COMPLETE

    @property
    def failed(self) -> Path:
        return self.folder / FAILED

    def log(self, job: str) -> Path:
        """Where the job's output goes."""
        return self.folder / LOGS.replace("*", job)

    def torchrun(self, *rendezvous: str, agent: str = TORCHRUN, python: str = sys.executable) -> list[str]:
        """The command of one node, with torchrun's options for finding the others."""
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
        """What every worker needs beyond its machine's environment.

        Args:
            cores: of each node, shared by its processes.
        """
        threads = self.launcher.threads or max(1, cores // self.launcher.processes)
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        return {
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(threads),
            # with the agents' own store, stale keys make a restart hang or use up all tries (pytorch #135712)
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
            UserError: with the words of ``failed.txt``.
            LaunchError: if it is not done for another reason.
        """
        if self.is_complete():  # whatever befell the processes after that
            return
        if self.failed.exists():
            raise UserError(self.failed.read_text(encoding="utf-8").strip())
        if ending.ok:
            raise LaunchError(f"{ending.words} before the work was done; what is done is kept: repeat to go on")
        raise LaunchError("\n".join([*output.last_lines(), ending.words]))
