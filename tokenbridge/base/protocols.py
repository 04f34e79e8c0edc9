"""What a long computation reports to those who watch it, and what they may ask of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """The settings of ``launcher`` that this package reads."""

    threads: int
    log_seconds: float


class MetricSink(Protocol):
    """Where metrics, tags and files go while a stage works; ``tokenbridge.infra.tracking.spool.Tracker`` is one."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None: ...

    def tags(self, values: dict[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...


Stop = Callable[[], bool]
"""Whether a checkpoint shall be saved and the work be left."""


def never() -> bool:
    return False
