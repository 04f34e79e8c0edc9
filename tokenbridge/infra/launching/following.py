"""Follow a scheduler's job until it has ended: its output line by line, and its state at intervals."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenbridge.infra.launching.work import JobState, Output

logger = logging.getLogger(__name__)

READ_SECONDS = 0.5
QUIET_READS = 3  # after this number of reads without a new line, the output of an ended job is complete
MAX_POLL_SECONDS = 15.0  # between queries to the scheduler, which many others query too
POLL_SHARE = 0.1  # pause between queries, as a share of the time that the job has been followed


class GrowingFile:
    """A file to which other processes append, read line by line. It need not exist yet.

    Args:
        from_end: leave out the lines that it has already.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self._read = path.stat().st_size if from_end and path.exists() else 0

    def lines(self) -> Iterator[str]:
        """Yield the whole lines that were written since the last call, without their ends."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                yield line.decode(errors="replace").rstrip()


def follow(job: str, log: GrowingFile, ask: Callable[[], JobState], output: Output) -> JobState:
    """Pass on a job's output until the scheduler reports that the job has ended.

    A failure must be reported twice in a row, because the job may be about to be requeued.
    """
    said = JobState("")
    started = time.monotonic()
    while True:
        state = ask()
        if state.words != said.words:
            logger.info(f"{job}: {state.words}")
        if state.ended and (state.ok or said.ended):
            _read_for(log, output, None)
            return state
        said = state
        pause = min(MAX_POLL_SECONDS, max(READ_SECONDS, POLL_SHARE * (time.monotonic() - started)))
        _read_for(log, output, READ_SECONDS if state.ended else pause)


def _read_for(log: GrowingFile, output: Output, seconds: float | None) -> None:
    """Pass on lines for ``seconds``. With None, go on until no more come, because a shared file system may lag."""
    until = time.monotonic() + (seconds or 0)
    quiet = itertools.count()
    while (next(quiet) < QUIET_READS) if seconds is None else (time.monotonic() < until):
        for line in log.lines():
            output.take(line)
            quiet = itertools.count()
        time.sleep(READ_SECONDS)
