"""Follow a scheduler's job until it has ended: its output line by line, and its state at intervals."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenbridge.infra.launching.output import Output

READ_SECONDS = 0.5
QUIET_READS = 3  # after this number of reads without a new line, the output of an ended job is complete
MAX_POLL_SECONDS = 15.0  # between queries to the scheduler, which many others query too
POLL_SHARE = 0.1  # pause between queries, as a share of the time that the job has been followed
RECALLED_BYTES = 65_536  # read again from the end of a log that an earlier driver has followed


@dataclass(frozen=True)
class JobState:
    """A job's state, as the scheduler reports it."""

    words: str  # such as "PENDING (Resources)"
    ended: bool = False
    ok: bool = False


class LogFiles:
    """Log files that grow on other machines, read line by line. New files may appear.

    Args:
        pattern: glob pattern of the files' paths.
        recall: begin with the last lines of the files that exist already, not with the first lines.
    """

    def __init__(self, pattern: Path, recall: bool) -> None:
        self.pattern = pattern
        self._read = {path: _recent(path) for path in self._files()} if recall else {}

    def lines(self) -> Iterator[str]:
        """Yield the whole lines that were written since the last call."""
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
    """Return the offset at which the last lines of a file begin."""
    start = max(0, path.stat().st_size - RECALLED_BYTES)
    with path.open("rb") as file:
        file.seek(start)
        return start + len(file.readline()) if start else 0


def follow(job: str, logs: LogFiles, ask: Callable[[], JobState], output: Output) -> JobState:
    """Pass on a job's output until the scheduler reports that the job has ended.

    A failure must be reported twice in a row, because the job may be about to be requeued.
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
    """Pass on lines for ``seconds``. With None, go on until no more come, because a shared file system may lag."""
    until = time.monotonic() + (seconds or 0)
    quiet = itertools.count()
    while (next(quiet) < QUIET_READS) if seconds is None else (time.monotonic() < until):
        for line in logs.lines():
            output.take(line)
            quiet = itertools.count()
        time.sleep(READ_SECONDS)
