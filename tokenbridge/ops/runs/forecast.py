"""A forecast of the stages that a pipeline still has to run, and of their durations, taken from the last time here."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from omegaconf import OmegaConf

from tokenbridge.base.files import read_json, write_json
from tokenbridge.base.progress import RESUMING, clock, read_left
from tokenbridge.config.params import PARAMS_FILE
from tokenbridge.infra.dvc import read_graph, read_stages, stale_stages

DURATIONS = Path(".work/durations.json")  # stage -> digest of settings -> seconds, the latest last
REMEMBERED = 20  # digests of settings kept for each stage
TELL_SECONDS = 60.0  # between progress lines while a stage runs


def forecast(root: Path, *, everything: bool = False) -> "Forecast":
    """Forecast the stages that DVC would run in ``root`` now, or every stage if ``everything`` is set."""
    settings = _settings(root)
    return Forecast(root / DURATIONS, settings, list(settings) if everything else stale_stages(root))


def _settings(root: Path) -> dict[str, str]:
    """Return stage -> digest of what decides its duration.

    That is its parameters, the digests of the stages that it needs, and the launcher's settings.
    """
    launcher = OmegaConf.to_container(OmegaConf.select(OmegaConf.load(root / PARAMS_FILE), "launcher"))
    stages = read_stages(root)
    digests: dict[str, str] = {}
    for name, needed in read_graph(root).items():
        text = json.dumps([stages[name].params, launcher, [digests[each] for each in needed]], sort_keys=True)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digests


class Forecast:
    """The stages of one execution, and how long they take by this and earlier executions.

    Args:
        path: the file that keeps durations.
        settings: every stage, with a digest of what decides its duration.
        left: the stages that may have to run, in their order.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, str], left: list[str], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.path, self.settings, self.left, self.now = path, settings, list(left), now
        self.planned = len(left)
        self.durations = _read(path)
        self.began = self.reported = now()
        self.running: str | None = None
        self.resumed = False
        self.ends: float | None = None  # estimated from the running stage's own progress

    def start(self, stage: str) -> str:
        """Note that ``stage`` runs now, and return the line to show."""
        self.finish()
        if stage not in self.left:  # DVC runs it although it was not expected to
            self.left.insert(0, stage)
            self.planned += 1
        self.running, self.resumed, self.ends = stage, False, None
        self.began = self.reported = self.now()
        return self.line()

    def finish(self) -> None:
        """Note that the running stage, if any, has ended, and keep its duration."""
        if self.running is None:
            return
        stage, self.running = self.running, None
        self.skip(stage)
        if not self.resumed:  # a resumed stage ran only the rest of its work
            self._keep(stage, self.now() - self.began)

    def end(self) -> str | None:
        """Note that a dvc command has succeeded; return the last line to show, once, when no stage is left."""
        self.finish()
        if self.left or not self.planned:
            return None
        line, self.planned = self.line(), 0
        return line

    def _keep(self, stage: str, seconds: float) -> None:
        settings, known = self.settings[stage], self.durations.get(stage, {})
        known = {other: known[other] for other in known if other != settings} | {settings: round(seconds, 1)}
        self.durations[stage] = dict(list(known.items())[-REMEMBERED:])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.durations)

    def fail(self) -> None:
        """Note that the running stage, if any, has failed and still has to run."""
        self.running = None

    def skip(self, stage: str) -> None:
        """Note that ``stage`` has nothing to do."""
        if stage in self.left:
            self.left.remove(stage)

    def listen(self, line: str) -> str | None:
        """Read the running stage's progress from its output; return a line to show at most every ``TELL_SECONDS``."""
        self.resumed = self.resumed or RESUMING in line
        left = read_left(line)
        if self.running is None or left is None:
            return None
        self.ends = self.now() + left
        if self.now() - self.reported < TELL_SECONDS:
            return None
        self.reported = self.now()
        return self.line()

    def line(self) -> str:
        known = {stage: seconds for stage in self.left if (seconds := self.seconds(stage)) is not None}
        done = f"pipeline: {self.planned - len(self.left)} of {self.planned} stages done"
        if not self.left:
            return done
        timed = ", ".join(f"{stage} ({self._words(stage, seconds)})" for stage, seconds in known.items())
        untimed = ", ".join(stage for stage in self.left if stage not in known)
        if not timed:
            return f"{done}; still to come, not timed here yet: {untimed}"
        others = f"; not timed here yet: {untimed}" if untimed else ""
        left = f"about {clock(sum(known.values()))} left" + (" for the others" if untimed else "")
        return f"{done}; still to come: {timed}{others}; {left}"

    def seconds(self, stage: str) -> float | None:
        """Estimate the seconds that a stage still takes, from its own progress or from its last duration here."""
        if stage == self.running and self.ends is not None:
            return max(self.ends - self.now(), 0.0)
        if not (known := self.durations.get(stage)):
            return None
        last = known.get(self.settings[stage], list(known.values())[-1])
        return max(last - (self.now() - self.began), 0.0) if stage == self.running else last

    def _words(self, stage: str, seconds: float) -> str:
        if stage == self.running and self.ends is not None:
            return f"{clock(seconds)} left"
        if stage == self.running and seconds == 0:
            return "longer than the last time"
        same = self.settings[stage] in self.durations[stage]
        return f"about {clock(seconds)}" if same else f"{clock(seconds)} with other settings"


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError):  # no file yet, or not a file of durations
        return {}
