"""Threads keep the order of a stream, and do not run far ahead of its reader."""

import itertools
import os
import subprocess
import sys
import threading

import pytest

from tokenbridge.base.threads import AHEAD, in_threads


def test_results_come_in_order_and_few_items_are_taken_in_advance() -> None:
    taken = itertools.count()
    results = in_threads(lambda number: -number, (next(taken) for _ in iter(int, 1)))
    assert [next(results) for _ in range(100)] == [-number for number in range(100)]
    assert next(taken) <= 100 + AHEAD
    results.close()


def test_an_error_comes_in_its_items_place() -> None:
    results = in_threads(lambda number: 1 // number, [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_stream_that_was_left_half_way_ends_without_waiting_for_its_threads() -> None:
    """Python's garbage collector may close it while a thread is being started, which holds this lock."""
    stream = in_threads(str, range(1000))
    next(stream)
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        stream.close()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_a_process_has_as_many_threads_as_cores_that_it_may_use() -> None:
    one = next(iter(os.sched_getaffinity(0)))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from tokenbridge.base import threads; print(threads.THREADS)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"
