"""The interfaces between a long computation and its surroundings: settings, metrics, and requests to stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """The settings of ``launcher`` that this package reads."""

    threads: int
    deterministic: bool
    log_seconds: float


class MetricSink(Protocol):
    """The destination of a stage's metrics, tags and files, such as ``tokenbridge.infra.tracking.spool.Tracker``."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None: ...

    def tags(self, values: dict[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...


class Discard:
    """A metric sink that keeps nothing."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None: ...

    def tags(self, values: dict[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...


Stop = Callable[[], bool]
"""A function that returns True to save a checkpoint and stop."""


def never() -> bool:
    return False
