"""Print the workers' output line by line, and remember enough of it to report which worker failed and why."""

import re
import signal
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass

RANK_PREFIX = "[rank ${rank}] "  # torchrun puts this in front of each worker's line
REMEMBERED = 20  # last lines of each worker
RANK_LINE = re.compile(r"\[rank (\d+)\] (\[rank\d+\]: )?(.*)")  # torch adds the second mark to an uncaught error
TRACEBACK = "Traceback (most recent call last)"
# torchrun's summary of one node
ROOT_CAUSE = re.compile(
    r"Root Cause.*\n\[0\]:\n"
    r"  time +: (?P<time>\S+)\n  host +: (?P<host>\S+)\n  rank +: (?P<rank>\d+).*\n  exitcode +: (?P<code>-?\d+)"
)


@dataclass(frozen=True)
class Failure:
    """The first worker that failed on one node."""

    time: str
    host: str
    rank: int
    code: int

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} {how_ended(self.code)}"


class Output:
    """Print lines to stdout, and remember the last ones."""

    def __init__(self) -> None:
        self._of_rank: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._errors: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._others: deque[str] = deque(maxlen=10 * REMEMBERED)  # lines of torchrun and the scheduler
        self._last_traceback: dict[int, int] = {}
        self._count = 0

    def take(self, line: str) -> None:
        """Print one line, given without its line end."""
        self._count += 1
        match = RANK_LINE.fullmatch(line)
        if match is None:
            print(line, flush=True)
            self._others.append(line)
            return
        rank, text = int(match[1]), match[3]
        print(f"[rank {rank}] {text}", flush=True)
        self._of_rank[rank].append(text)
        if match[2]:  # kept apart: earlier lines may arrive later, because torchrun reads stdout and stderr in turn
            self._errors[rank].append(text)
        if text.startswith(TRACEBACK):
            self._last_traceback[rank] = self._count

    def last_lines(self) -> list[str]:
        """Return the last lines of the worker that failed first, and how it ended.

        If no worker failed, return the last lines of torchrun and the scheduler.
        """
        failures = self._failures()
        if not failures:
            return list(self._others)[-REMEMBERED:]
        first = min(failures, key=lambda each: (each.time, self._last_traceback.get(each.rank, 0)))
        return [*(self._errors[first.rank] or self._of_rank[first.rank]), str(first)]

    def _failures(self) -> list[Failure]:
        """Return the first failure on each node. A dead worker ends the others, so the earliest one is the cause."""
        found = ROOT_CAUSE.finditer("\n".join(self._others))
        return [Failure(each["time"], each["host"], int(each["rank"]), int(each["code"])) for each in found]


def how_ended(code: int) -> str:
    """Describe an exit code in words. A negative code is a signal."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
