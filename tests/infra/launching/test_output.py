"""What is remembered of the workers' lines: who failed first, and with which words."""

import pytest

from tokenbridge.infra.launching.output import Output

SUMMARY = """\
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : {time}
  host      : {host}
  rank      : {rank} (local_rank: 0)
  exitcode  : {code} (pid: 12)
"""


def summary(host: str, rank: int, code: int = 1, time: str = "2026-01-01_00:00:01") -> str:
    return SUMMARY.format(host=host, rank=rank, code=code, time=time)


def last_lines(*parts: str) -> list[str]:
    output = Output()
    for line in "\n".join(parts).splitlines():
        output.take(line)
    return output.last_lines()


def test_lines_are_passed_on_with_one_rank_each(capsys: pytest.CaptureFixture[str]) -> None:
    last_lines("[rank 1] step 3", "[rank 1] [rank1]: ValueError: no", "srun: error: n1")
    assert capsys.readouterr().out.splitlines() == ["[rank 1] step 3", "[rank 1] ValueError: no", "srun: error: n1"]


def test_the_rank_that_failed_first_is_quoted() -> None:
    own = ["[rank 3] Traceback (most recent call last):", "[rank 3] ValueError: no"]
    others = ["[rank 0] Traceback (most recent call last):", "[rank 0] RuntimeError: connection closed by peer"]
    words = ["Traceback (most recent call last):", "ValueError: no", "rank 3 on n2 ended with exit code 1"]
    assert last_lines(*own, *others, summary("n1", 0), summary("n2", 3)) == words
    late = summary("n1", 0, time="2026-01-01_00:00:02")
    assert last_lines(*others, *own, late, summary("n2", 3)) == words


def test_an_error_is_quoted_without_what_was_said_before_it_and_came_later() -> None:
    words = last_lines("[rank 1] [rank1]: ValueError: no", "[rank 1] step 3", summary("n1", 1))
    assert words == ["ValueError: no", "rank 1 on n1 ended with exit code 1"]


def test_a_killed_rank_goes_before_those_that_missed_it() -> None:
    others = ["[rank 0] Traceback (most recent call last):", "[rank 0] RuntimeError: connection closed by peer"]
    words = last_lines("[rank 1] step 3", *others, summary("n1", 0), summary("n2", 1, code=-9))
    assert words == ["step 3", "rank 1 on n2 was ended by SIGKILL"]


def test_where_no_rank_failed_the_last_lines_of_all_are_quoted() -> None:
    assert last_lines("[rank 0] step 3", "srun: error: no such node")[-1] == "srun: error: no such node"
