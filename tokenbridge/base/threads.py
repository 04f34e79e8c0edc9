"""Work of threads on a stream of items, for work that releases Python's lock, such as decoding and compression."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from tokenbridge.base.machine import CORES

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = min(16, CORES)
AHEAD = 2 * THREADS  # items in work or done at a time, so that memory is bounded


@contextmanager
def threads_of_stream(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for a generator, whose end does not wait for them.

    A generator that an error left half-way is closed by the garbage collector, perhaps while a thread is being started:
    under a lock that other threads need to end. To wait for them there would be to wait for ever.
    """
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``work(item)`` of each item, in order. An error of ``work`` is raised in its place."""
    with threads_of_stream(THREADS) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            if len(ahead) == AHEAD:
                yield ahead.popleft().result()
            ahead.append(pool.submit(work, item))
        while ahead:
            yield ahead.popleft().result()
