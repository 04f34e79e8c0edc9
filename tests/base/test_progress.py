"""Progress lines."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout

import pytest

from tokenbridge.base.console import log_to_console
from tokenbridge.base.progress import FINEST, Progress, Rate, clock, rate_words, read_left


@contextmanager
def output() -> Iterator[io.StringIO]:
    """What is logged to the console meanwhile."""
    log_to_console()
    with redirect_stdout(io.StringIO()) as out:
        yield out


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3599, 3661)] == ["0:00", "1:00", "1:01", "59:59", "1:01:01"]


def test_lines_are_rare_but_the_last_is_always_printed() -> None:
    with output() as out:
        progress = Progress("encode", 100, every=1e9)
        for _ in range(10):
            progress.advance(10)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert "100/100 images" in lines[0]
    assert "done in" in lines[0]


def test_every_line_has_rate_and_time_left() -> None:
    with output() as out:
        Progress("train", 10, "steps", every=0).advance(1, "loss 2")
    assert "1/10 steps" in out.getvalue()
    assert "/s" in out.getvalue()
    assert "left" in out.getvalue()
    assert "loss 2" in out.getvalue()


def test_a_resumed_run_says_so() -> None:
    with output() as out:
        Progress("train", 10, "steps", done=4)
    assert "resuming at 4 of 10 steps" in out.getvalue()


class Clock:
    """Stands still unless it is moved on."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def shown(pauses: Iterable[float], total: int, unit: str = "steps") -> list[str]:
    """The lines of a progress whose steps take so many seconds."""
    now = Clock()
    with output() as out:
        progress = Progress("train", total, unit, every=0, now=now)
        for seconds in pauses:
            now.seconds += seconds
            progress.advance(1)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (12_345, "12,345/s"),
        (1.25, "1.25/s"),
        (1, "1/s"),
        (0.4, "2.5 s each"),
        (1 / 90, "90 s each"),
        (1 / 1234, "1,234 s each"),
    ],
)
def test_what_is_slower_than_one_a_second_has_the_seconds_of_each(rate: float, words: str) -> None:
    assert rate_words(rate) == words


def test_the_time_left_follows_steps_that_get_slower() -> None:
    lines = shown([0.1] * 1000 + [3.0] * 30, total=1130)
    assert lines[999].endswith("10/s  0:13 left")
    assert lines[1029].endswith("3 s each  5:00 left")  # by the mean since the start, 0:18


def test_and_steps_that_get_faster() -> None:
    assert shown([60.0] * 3 + [1.0] * 70, total=133)[-1].endswith("1/s  1:00 left")


def test_a_step_longer_than_a_minute_has_a_rate_all_the_same() -> None:
    assert shown([600.0] * 3, total=5)[-1].endswith("600 s each  20:00 left")


def test_one_slow_step_does_not_decide() -> None:
    assert shown([1.0] * 100 + [10.0], total=161)[-1].endswith("1.18 s each  1:11 left")


def test_the_last_line_has_the_mean_of_all() -> None:
    assert shown([10.0, 1.0, 1.0], total=3)[-1].endswith("4 s each  done in 0:12")


def test_no_more_moments_are_kept_than_it_takes() -> None:
    rate = Rate(0, 0.0)
    for step in range(1, 100_000):
        rate.at(step, step / 1000)
    assert len(rate.moments) <= FINEST + 3


def test_nothing_done_for_long_has_no_time_left() -> None:
    now = Clock()
    with output() as out:
        progress = Progress("encode", 10, every=0, now=now)
        progress.advance(5)
        now.seconds += 100
        progress.advance(0)
        now.seconds += 100
        progress.advance(0)
    assert out.getvalue().splitlines()[-1].endswith("nothing in the last 1:00")


@pytest.mark.parametrize(("pause", "left"), [(0.5, 50), (30.0, 3000), (3600.0, 360_000)])
def test_the_time_left_can_be_read_back(pause: float, left: float) -> None:
    assert read_left(shown([pause], total=101)[0]) == left


@pytest.mark.parametrize("line", ["Running stage 'vae':", shown([1.0], total=1)[0], "he left", ""])
def test_other_lines_tell_no_time_left(line: str) -> None:
    assert read_left(line) is None
