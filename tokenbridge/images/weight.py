"""Bounds on the memory of images that are read together: by their weight, not only by their number."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

Item = TypeVar("Item")


class Budget:
    """What threads hold together. They wait while their sum would be above ``limit``; more than that is held alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.sum, self.changed = limit, 0, Condition()

    @contextmanager
    def held(self, weight: int) -> Iterator[None]:
        weight = min(weight, self.limit)
        with self.changed:
            self.changed.wait_for(lambda: self.sum + weight <= self.limit)
            self.sum += weight
        try:
            yield
        finally:
            with self.changed:
                self.sum -= weight
                self.changed.notify_all()


def groups(items: Iterable[Item], most: int, weight: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Yield the items in groups of at most ``most``, whose weight is at most ``limit`` unless it is a single item's."""
    group: list[Item] = []
    total = 0
    for item in items:
        if group and (len(group) == most or total + weight(item) > limit):
            yield group
            group, total = [], 0
        group.append(item)
        total += weight(item)
    if group:
        yield group
