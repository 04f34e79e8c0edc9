"""What the driver of a stage's workers passes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.pipeline.project import wait_for
from tokenbridge.stages import job
from tokenbridge.stages.runtime import StageRun


def test_what_workers_write_is_recorded_while_they_work_and_whole_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "LOG_SECONDS", 0.01)
    recorded: list[tuple[str, str]] = []
    tracker = SimpleNamespace(artifact=lambda path, folder: recorded.append((path.read_text(), folder)))
    log = tmp_path / "workers-7.log"
    with job._output_passed_on(cast(StageRun, SimpleNamespace(work=tmp_path, tracker=tracker))):
        log.write_text("one\n")
        wait_for(lambda: ("one\n", "workers") in recorded, "first line")
        monkeypatch.setattr(job, "LOG_SECONDS", 3600)
        wait_for(lambda: len(recorded) > 1, "copy")
        log.write_text("one\ntwo\n")
    assert recorded[-1] == ("one\ntwo\n", "workers")
