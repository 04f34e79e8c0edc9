"""A forecast of the stages that a pipeline still has to run, and of their durations, taken from the last time here."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenbridge.base.files import read_json, write_json
from tokenbridge.base.progress import RESUMING, clock, read_left
from tokenbridge.infra.dvc import FAILED, RAN

DURATIONS = Path(".work/durations.json")  # stage -> seconds of its last complete execution
REPORT_SECONDS = 60.0  # between lines while a stage runs
Show = Callable[[str], None]


class Forecast:
    """The stages of one execution that may have to run, in their order, and how long they took the last time.

    Args:
        path: the file that keeps durations.
    """

    def __init__(self, path: Path, left: Sequence[str], now: Callable[[], float] = time.monotonic) -> None:
        self.path, self.left, self.now = path, list(left), now
        self.planned = len(left)
        try:
            known = dict(read_json(path))
        except (OSError, ValueError, TypeError):  # no file yet, or not a file of durations
            known = {}
        self.durations = {stage: seconds for stage, seconds in known.items() if isinstance(seconds, int | float)}
        self.running: str | None = None
        self.began = self.reported = 0.0
        self.ends: float | None = None  # by the running stage's own progress
        self.resumed = False

    def note(self, stage: str, outcome: str, show: Show) -> None:
        """Note what DVC reports of a stage, and show a line if the stage starts to run."""
        if outcome == FAILED:  # it still has to run
            self.running = None
            return
        self.finish()
        if outcome != RAN:
            self._done(stage)
            return
        if stage not in self.left:  # DVC runs it although it was not expected to
            self.left.insert(0, stage)
            self.planned += 1
        self.running, self.ends, self.resumed = stage, None, False
        self.began = self.reported = self.now()
        show(self.line())

    def listen(self, line: str, show: Show) -> None:
        """Read the running stage's progress, and show a line at most every ``REPORT_SECONDS``.

        A resumed stage runs only the rest of its work, so it is not timed.
        """
        self.resumed = self.resumed or RESUMING in line
        left = read_left(line)
        if self.running is None or left is None:
            return
        self.ends = self.now() + left
        if self.now() - self.reported >= REPORT_SECONDS:
            self.reported = self.now()
            show(self.line())

    def finish(self) -> None:
        """Note that the running stage, if any, has ended, and keep its duration."""
        if self.running is None:
            return
        if not self.resumed:
            self.durations[self.running] = round(self.now() - self.began, 1)
            write_json(self.path, self.durations)
        self._done(self.running)
        self.running = None

    def end(self, show: Show) -> None:
        """Note that a dvc command has succeeded; show the last line, once, when no stage is left."""
        self.finish()
        if self.planned and not self.left:
            show(self.line())
            self.planned = 0

    def line(self) -> str:
        done = f"pipeline: {self.planned - len(self.left)} of {self.planned} stages done"
        if not self.left:
            return done
        known = {stage: self.durations[stage] for stage in self.left if stage in self.durations}
        words = {stage: f"about {clock(seconds)}" for stage, seconds in known.items()}
        if self.running is not None and self.ends is not None:
            known[self.running] = max(self.ends - self.now(), 0.0)
            words[self.running] = f"{clock(known[self.running])} left"
        coming = ", ".join(f"{stage} ({words[stage]})" if stage in words else stage for stage in self.left)
        untimed = " and those that were not timed here yet" if len(known) < len(self.left) else ""
        left = f"about {clock(sum(known.values()))}{untimed}" if known else "not timed here yet"
        return f"{done}; still to come: {coming}; {left}"

    def _done(self, stage: str) -> None:
        if stage in self.left:
            self.left.remove(stage)
