"""Progress as plain lines (done, rate, time left) that read the same in a terminal, a log and a flow."""

import logging
import re
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

RESUMING = "resuming at"
RECENT_SECONDS = 60.0  # over which the rate is measured
FINEST = 100  # about this many moments of the last ``recent`` seconds are kept


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def read_left(line: str) -> float | None:
    """Return the seconds that a progress line says are left, or None for any other line."""
    match = re.search(r"(?:/s|each)  (\d+(?::\d\d)+) left", line)
    if match is None:
        return None
    seconds = 0
    for part in match[1].split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)


class Rate:
    """The amount done per second over the last ``recent`` seconds, or over one step if that took longer."""

    def __init__(self, done: int, now: float, recent: float = RECENT_SECONDS) -> None:
        self.recent = recent
        self.moments = deque([(now, done)])  # the rate is measured from the oldest one

    def at(self, done: int, now: float) -> float:
        moments = self.moments
        if len(moments) < 2 or now - moments[-2][0] >= self.recent / FINEST:
            moments.append((now, done))
        else:
            moments[-1] = (now, done)  # too close to the moment before it to keep both
        while len(moments) > 2 and now - moments[1][0] >= self.recent:
            moments.popleft()
        began, before = moments[0]
        return (done - before) / max(now - began, 1e-9)


def rate_words(rate: float) -> str:
    number, words = (1 / rate, " s each") if 0 < rate < 1 else (rate, "/s")
    return f"{number:,.0f}{words}" if number >= 100 else f"{number:.3g}{words}"


class Progress:
    """Print at most one line per ``every`` seconds, and a last one at the end. The time left follows the recent rate.

    Args:
        done: how much an earlier, interrupted run had finished already; it is not counted in the rate.
        recent: seconds over which the rate is measured.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "images",
        every: float = 5.0,
        done: int = 0,
        recent: float = RECENT_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.unit, self.every, self.now = label, total, unit, every, now
        self.done = self.resumed = done
        self.started = self.printed = now()
        self.rate = Rate(done, self.started, recent)
        if done:
            logger.info(f"{label}: {RESUMING} {done:,} of {total:,} {unit}")

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        now = self.now()
        recent = self.rate.at(self.done, now)
        if now - self.printed < self.every and self.done < self.total:
            return
        self.printed = now
        line = f"{self.label}: {self.done:,}/{self.total:,} {self.unit}  {self._pace(recent, now)}"
        logger.info(f"{line}  {note}".rstrip())

    def _pace(self, recent: float, now: float) -> str:
        if self.done >= self.total:
            elapsed = max(now - self.started, 1e-9)
            return f"{rate_words((self.done - self.resumed) / elapsed)}  done in {clock(elapsed)}"
        if recent <= 0:
            return f"nothing in the last {clock(self.rate.recent)}"
        return f"{rate_words(recent)}  {clock((self.total - self.done) / recent)} left"
