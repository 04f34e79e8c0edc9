"""What a long computation reports to those who watch it, and what they may ask of it."""

from collections.abc import Callable
from typing import Protocol


class MetricSink(Protocol):
    """Where metrics and tags go while a stage works; ``tokenbridge.tracking.spool.Tracker`` is one."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None: ...

    def tags(self, values: dict[str, str]) -> None: ...


Stop = Callable[[], bool]
"""Whether a checkpoint shall be saved and the work be left."""


def never() -> bool:
    return False
