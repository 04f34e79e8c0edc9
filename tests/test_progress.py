"""Progress lines."""

import io

from tokenbridge.progress import Progress, clock


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3599, 3661)] == ["0:00", "1:00", "1:01", "59:59", "1:01:01"]


def test_lines_are_rare_but_the_last_is_always_told() -> None:
    out = io.StringIO()
    progress = Progress("encode", 100, every=1e9, out=out)
    for _ in range(10):
        progress.advance(10)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert "100/100 images" in lines[0]
    assert "done in" in lines[0]


def test_every_line_has_rate_and_time_left() -> None:
    out = io.StringIO()
    Progress("train", 10, "steps", every=0, out=out).advance(1, "loss 2")
    assert "1/10 steps" in out.getvalue()
    assert "/s" in out.getvalue()
    assert "left" in out.getvalue()
    assert "loss 2" in out.getvalue()


def test_a_resumed_run_says_so() -> None:
    out = io.StringIO()
    Progress("train", 10, "steps", done=4, out=out)
    assert "resuming at 4 of 10 steps" in out.getvalue()
