"""A scheduler's job, followed from here: its output line by line, its state now and then, until it has ended."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenbridge.infra.launching.output import Output

READ_SECONDS = 0.5
QUIET_READS = 3  # without a new line, after which the output of an ended job is all there
MAX_POLL_SECONDS = 15.0  # between questions to the scheduler, which many others ask too
POLL_SHARE = 0.1  # of the time that the job has been followed
RECALLED_BYTES = 65_536  # of a log that an earlier driver has followed


@dataclass(frozen=True)
class JobState:
    """What the scheduler says."""

    words: str  # such as "PENDING (Resources)"
    ended: bool = False
    ok: bool = False


class LogFiles:
    """Files that grow on other machines, read as lines; new ones may appear.

    Args:
        pattern: of their paths.
        recall: begin with the last lines of what is there already, not with the first.
    """

    def __init__(self, pattern: Path, recall: bool) -> None:
        self.pattern = pattern
        self._read = {path: _recent(path) for path in self._files()} if recall else {}

    def lines(self) -> Iterator[str]:
        """Whole lines that were not there at the last call."""
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read[path] = self._read.get(path, 0) + len(line)
                    yield line.decode(errors="replace").rstrip()

    def _files(self) -> list[Path]:
        return sorted(self.pattern.parent.glob(self.pattern.name))


def _recent(path: Path) -> int:
    """Where the last lines of a file begin."""
    start = max(0, path.stat().st_size - RECALLED_BYTES)
    with path.open("rb") as file:
        file.seek(start)
        return start + len(file.readline()) if start else 0


def follow(job: str, logs: LogFiles, ask: Callable[[], JobState], output: Output) -> JobState:
    """Pass on a job's output until the scheduler says that it has ended.

    That it failed must be said twice: the job may be about to be requeued.
    """
    said = JobState("")
    started = time.monotonic()
    while True:
        state = ask()
        if state.words != said.words:
            print(f"{job}: {state.words}", flush=True)
        if state.ended and (state.ok or said.ended):
            _read_for(logs, output, None)
            return state
        said = state
        pause = min(MAX_POLL_SECONDS, max(READ_SECONDS, POLL_SHARE * (time.monotonic() - started)))
        _read_for(logs, output, READ_SECONDS if state.ended else pause)


def _read_for(logs: LogFiles, output: Output, seconds: float | None) -> None:
    """Pass on lines for so long; None: until no more come, since a shared file system may be behind."""
    until = time.monotonic() + (seconds or 0)
    quiet = itertools.count()
    while (next(quiet) < QUIET_READS) if seconds is None else (time.monotonic() < until):
        for line in logs.lines():
            output.take(line)
            quiet = itertools.count()
        time.sleep(READ_SECONDS)
