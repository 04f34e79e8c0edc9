"""One piece of work for many processes: its command under torchrun, its output, and whether it is done."""

import hashlib
import os
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from string import Template

import tokenbridge
from tokenbridge.base.errors import UserError, WorkFailedError
from tokenbridge.config.launcher import LauncherConfig
from tokenbridge.infra.launching.failure import NOTES, first_failure

PROJECT = Path(tokenbridge.__file__).parents[1]
LOGS = "workers-*.log"  # the output of all workers of a job
COMPLETE, FAILED = "complete", "failed.txt"  # left by workers: the work is done, or no restart can help
MEETING = "meeting"  # files through which the processes of one machine find each other
AGENT = "tokenbridge.infra.launching.agent"
RANK_PREFIX = "[rank ${rank}] "  # torchrun puts this in front of each worker's line
REMEMBERED, QUOTED = 500, 20  # last lines of all workers, and those of one worker that a message quotes


class LaunchError(WorkFailedError):
    """The workers ended before their work was done. The message says how, with the failing worker's last lines."""


class Output:
    """Print lines to stdout, and remember the last ones."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=REMEMBERED)

    def take(self, line: str) -> None:
        """Print one line, given without its line end."""
        print(line, flush=True)
        self._lines.append(line)

    def last_lines(self, prefix: str = "") -> list[str]:
        """Return the last lines that begin with ``prefix``, without it."""
        return [line.removeprefix(prefix) for line in self._lines if line.startswith(prefix)][-QUOTED:]


@dataclass(frozen=True)
class JobState:
    """The state of a job, as a scheduler or torchrun reports it."""

    words: str  # such as "PENDING (Resources)"
    ended: bool = False
    ok: bool = False


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

    def torchrun(self, *rendezvous: str) -> list[str]:
        """Return the command of one node. ``rendezvous`` holds torchrun's options for finding the other nodes."""
        return [
            *(sys.executable, "-m", AGENT, str(self.folder)),
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
        for left in (self.failed, *self.folder.glob(NOTES), *self.folder.glob(f"{MEETING}*")):
            left.unlink(missing_ok=True)

    def judge(self, end: JobState, output: Output) -> None:
        """Return if the work is done.

        Raises:
            UserError: with the text of ``failed.txt``.
            LaunchError: if the work is not done for another reason.
        """
        if self.complete.exists():  # how the processes ended after that does not matter
            return
        if self.failed.exists():
            raise UserError(self.failed.read_text(encoding="utf-8").strip())
        if end.ok:
            raise LaunchError(f"{end.words} before the work was done; what is done is kept: repeat to go on")
        failure = first_failure(self.folder)
        if failure is None:
            raise LaunchError("\n".join([*output.last_lines(), end.words]))
        lines = failure.traceback.splitlines() or output.last_lines(Template(RANK_PREFIX).substitute(rank=failure.rank))
        raise LaunchError("\n".join([*lines, failure.ending, end.words]))
