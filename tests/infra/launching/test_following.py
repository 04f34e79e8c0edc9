"""Logs that grow elsewhere, and jobs that end, or only seem to."""

from pathlib import Path

import pytest

from tokenbridge.infra.launching import following
from tokenbridge.infra.launching.following import GrowingFile, follow
from tokenbridge.infra.launching.work import JobState, Output


def test_of_a_growing_file_whole_lines_are_read_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    growing = GrowingFile(path)
    assert list(growing.lines()) == []
    path.write_text("one\ntw")
    assert list(growing.lines()) == ["one"]
    later = GrowingFile(path, from_end=True)
    path.write_text("one\ntwo\nthree\n")
    assert list(growing.lines()) == ["two", "three"]
    assert list(later.lines()) == ["o", "three"]


def test_a_job_that_failed_and_is_requeued_is_followed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "READ_SECONDS", 0.01)
    said = ["RUNNING", "PREEMPTED", "PENDING", "RUNNING", "COMPLETED"]
    states = iter(JobState(words, ended=words[-2:] == "ED", ok=words == "COMPLETED") for words in said)
    (tmp_path / "log").write_text("a line\n")
    state = follow("job 1", GrowingFile(tmp_path / "log"), lambda: next(states), Output())
    assert state.ok
    assert capsys.readouterr().out.splitlines() == [
        "job 1: RUNNING",
        "a line",
        *(f"job 1: {word}" for word in said[1:]),
    ]
