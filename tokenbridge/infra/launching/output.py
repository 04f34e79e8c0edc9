"""What the workers write: passed on line by line, and remembered well enough to say who failed, and why."""

import re
import signal
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass

RANK_PREFIX = "[rank ${rank}] "  # torchrun's, in front of each worker's line
REMEMBERED = 20  # lines of each worker
RANK_LINE = re.compile(r"\[rank (\d+)\] (\[rank\d+\]: )?(.*)")  # torch marks the lines of an uncaught error by itself
TRACEBACK = "Traceback (most recent call last)"
# torchrun's summary of one node
ROOT_CAUSE = re.compile(
    r"Root Cause.*\n\[0\]:\n"
    r"  time +: (?P<time>\S+)\n  host +: (?P<host>\S+)\n  rank +: (?P<rank>\d+).*\n  exitcode +: (?P<code>-?\d+)"
)


@dataclass(frozen=True)
class Failure:
    """The first worker of one node that failed."""

    time: str
    host: str
    rank: int
    code: int

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} {how_ended(self.code)}"


class Output:
    """Passes lines on to stdout."""

    def __init__(self) -> None:
        self._of_rank: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._errors: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._others: deque[str] = deque(maxlen=10 * REMEMBERED)  # torchrun's and the scheduler's
        self._last_traceback: dict[int, int] = {}
        self._count = 0

    def take(self, line: str) -> None:
        """Pass on one line, given without its end."""
        self._count += 1
        match = RANK_LINE.fullmatch(line)
        if match is None:
            print(line, flush=True)
            self._others.append(line)
            return
        rank, text = int(match[1]), match[3]
        print(f"[rank {rank}] {text}", flush=True)
        self._of_rank[rank].append(text)
        if match[2]:  # kept apart: what was said before may come later, since torchrun reads stdout and stderr in turn
            self._errors[rank].append(text)
        if text.startswith(TRACEBACK):
            self._last_traceback[rank] = self._count

    def last_lines(self) -> list[str]:
        """The last lines of the worker that failed first, and how it ended; without one, the last lines of all."""
        failures = self._failures()
        if not failures:
            return list(self._others)[-REMEMBERED:]
        first = min(failures, key=lambda each: (each.time, self._last_traceback.get(each.rank, 0)))
        return [*(self._errors[first.rank] or self._of_rank[first.rank]), str(first)]

    def _failures(self) -> list[Failure]:
        """One for each node that told. A dead worker takes the others with it, so the earliest is the cause."""
        found = ROOT_CAUSE.finditer("\n".join(self._others))
        return [Failure(each["time"], each["host"], int(each["rank"]), int(each["code"])) for each in found]


def how_ended(code: int) -> str:
    """An exit code in words; negative ones are signals."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
