"""Logs that grow elsewhere, and jobs that end, or only seem to."""

from pathlib import Path

import pytest

from tokenbridge.infra.launching import following
from tokenbridge.infra.launching.following import JobState, LogFiles, follow
from tokenbridge.infra.launching.output import Output


def test_only_whole_lines_are_read_and_each_once(tmp_path: Path) -> None:
    logs, log = LogFiles(tmp_path / "workers-*.log", recall=False), tmp_path / "workers-1.log"
    assert list(logs.lines()) == []
    log.write_text("one\ntw")
    assert list(logs.lines()) == ["one"]
    log.write_text("one\ntwo\n")
    (tmp_path / "workers-2.log").write_text("three\n")
    assert list(logs.lines()) == ["two", "three"]


def test_of_a_long_log_the_end_is_recalled(tmp_path: Path) -> None:
    log = tmp_path / "workers-1.log"
    log.write_text("".join(f"line {number}\n" for number in range(20_000)))
    recalled = list(LogFiles(log, recall=True).lines())
    assert recalled[-1] == "line 19999"
    assert 1_000 < len(recalled) < 10_000
    assert recalled[0].startswith("line "), "not the rest of a line"


def test_a_job_that_failed_and_is_requeued_is_followed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "READ_SECONDS", 0.01)
    said = ["RUNNING", "PREEMPTED", "PENDING", "RUNNING", "COMPLETED"]
    states = iter(JobState(words, ended=words[-2:] == "ED", ok=words == "COMPLETED") for words in said)
    (tmp_path / "log").write_text("a line\n")
    state = follow("job 1", LogFiles(tmp_path / "log", recall=False), lambda: next(states), Output())
    assert state.ok
    assert capsys.readouterr().out.splitlines() == [
        "job 1: RUNNING",
        "a line",
        *(f"job 1: {word}" for word in said[1:]),
    ]
