"""What the driver of a stage's workers passes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.pipeline.project import wait_for
from tokenbridge.base.protocols import MetricSink
from tokenbridge.stages import context


def test_what_workers_write_is_recorded_while_they_work_and_whole_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(context, "LISTEN_SECONDS", 0.01)
    recorded: list[tuple[str, str]] = []
    tracker = SimpleNamespace(artifact=lambda path, folder: recorded.append((path.read_text(), folder)))
    log = tmp_path / "workers-7.log"
    with context._passed_on(tmp_path, cast(MetricSink, tracker)):
        log.write_text("one\n")
        wait_for(lambda: ("one\n", "workers") in recorded, "first line")
        monkeypatch.setattr(context, "LOG_SECONDS", 3600)
        log.write_text("one\ntwo\n")
    assert recorded[-1] == ("one\ntwo\n", "workers")


def test_what_a_worker_measures_and_its_files_reach_the_driver_wherever_the_folder_lies(tmp_path: Path) -> None:
    recorded: list[object] = []

    def tags(values: dict[str, str]) -> None:
        recorded.append(values)

    tracker = SimpleNamespace(
        metrics=lambda values, step: recorded.append((values, step)),
        tags=tags,
        artifact=lambda path, folder: recorded.append((path.read_text(), folder)),
    )
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/grid.png").write_text("a picture")
    sink = context.MetricFile(tmp_path / context.METRICS)
    with context._passed_on(tmp_path, cast(MetricSink, tracker)):
        sink.metrics({"loss": 2.0}, step=3)
        sink.tags({"precision": "fp32"})
        sink.artifact(tmp_path / "samples/grid.png", "samples")
    assert recorded == [({"loss": 2.0}, 3), {"precision": "fp32"}, ("a picture", "samples")]
