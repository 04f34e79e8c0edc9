"""Progress as plain lines (done, rate, time left) that read the same in a terminal, a log and a flow."""

import time
from typing import TextIO


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """Prints at most one line per ``every`` seconds, and a last one at the end.

    Args:
        done: what an earlier, interrupted run had finished already; not counted in the rate.
    """

    def __init__(
        self, label: str, total: int, unit: str = "images", every: float = 5.0, done: int = 0, out: TextIO | None = None
    ) -> None:
        self.label, self.total, self.unit, self.every, self.out = label, total, unit, every, out
        self.done = self.resumed = done
        self.started = self.printed = time.monotonic()
        if done:
            print(f"{label}: resuming at {done:,} of {total:,} {unit}", flush=True, file=out)

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.printed < self.every and self.done < self.total:
            return
        self.printed = now
        elapsed = max(now - self.started, 1e-9)
        rate = (self.done - self.resumed) / elapsed
        left = "done in " + clock(elapsed) if self.done >= self.total else f"{clock(self.left(rate))} left"
        line = f"{self.label}: {self.done:,}/{self.total:,} {self.unit}  {rate:,.0f}/s  {left}"
        print(f"{line}  {note}".rstrip(), flush=True, file=self.out)

    def left(self, rate: float) -> float:
        return (self.total - self.done) / max(rate, 1e-9)
