"""Work of threads on a stream of items, for work that releases Python's lock, such as decoding and compression."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = min(16, os.cpu_count() or 1)
AHEAD = 2 * THREADS  # items in work or done at a time, so that memory is bounded


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``work(item)`` of each item, in order. An error of ``work`` is raised in its place."""
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            if len(ahead) == AHEAD:
                yield ahead.popleft().result()
            ahead.append(pool.submit(work, item))
        while ahead:
            yield ahead.popleft().result()
