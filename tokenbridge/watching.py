"""What a long computation tells those who watch it, and what they may ask of it."""

from collections.abc import Callable
from typing import Protocol


class MetricSink(Protocol):
    """Where metrics go while training runs; ``tokenbridge.tracking.spool.Tracker`` is one."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None: ...


Stop = Callable[[], bool]
"""Whether a checkpoint shall be saved and the work be left."""


def never() -> bool:
    return False
