"""What a pipeline has still to do, and how long that took the last time."""

from pathlib import Path

import pytest

from tokenbridge.base.files import read_json
from tokenbridge.infra.dvc import CACHED, FAILED, RAN, SKIPPED
from tokenbridge.ops.runs.forecast import Forecast

STAGES = ["fetch", "vae", "encode", "train@base"]


class Pipeline:
    """Executions of ``STAGES`` in one folder, by a clock that stands still unless it is moved on."""

    def __init__(self, folder: Path) -> None:
        self.path, self.seconds = folder / ".work/durations.json", 1000.0
        self.shown: list[str] = []
        self.show = self.shown.append

    def forecast(self, *left: str) -> Forecast:
        self.shown.clear()
        return Forecast(self.path, left or STAGES, lambda: self.seconds)

    def run(self, seconds: float, *stages: str, line: str = "") -> None:
        """Each stage for so long, saying a line meanwhile."""
        coming = self.forecast(*stages)
        for stage in stages:
            coming.note(stage, RAN, self.show)
            coming.listen(line, self.show)
            self.seconds += seconds
        coming.end(self.show)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def test_stages_to_come_are_listed_with_their_last_durations(pipeline: Pipeline) -> None:
    pipeline.run(10, "fetch")
    pipeline.run(546, "vae")
    pipeline.run(35, "encode")
    coming = pipeline.forecast()
    coming.note("fetch", RAN, pipeline.show)
    coming.note("vae", RAN, pipeline.show)
    assert pipeline.shown[1:] == [
        "pipeline: 1 of 4 stages done; still to come: vae (about 9:06), encode (about 0:35), "
        "train@base; about 9:41 and those that were not timed here yet"
    ]


@pytest.mark.parametrize("outcome", [SKIPPED, CACHED])
def test_what_dvc_skips_takes_no_time(pipeline: Pipeline, outcome: str) -> None:
    pipeline.run(100, *STAGES)
    coming = pipeline.forecast()
    for stage, found in zip(STAGES, (RAN, outcome, outcome, RAN), strict=True):
        coming.note(stage, found, pipeline.show)
    assert pipeline.shown[1:] == ["pipeline: 3 of 4 stages done; still to come: train@base (about 1:40); about 1:40"]


def test_the_running_stage_is_reported_by_its_own_progress_once_a_minute(pipeline: Pipeline) -> None:
    coming = pipeline.forecast("vae", "encode")
    coming.note("vae", RAN, pipeline.show)
    for seconds, left in ((0, "8:15"), (60, "7:15"), (30, "6:45")):
        pipeline.seconds += seconds
        coming.listen(f"vae: 130/1,000 steps  2/s  {left} left  loss 1", pipeline.show)
    assert pipeline.shown[1:] == [
        "pipeline: 0 of 2 stages done; still to come: vae (7:15 left), encode; "
        "about 7:15 and those that were not timed here yet"
    ]


def test_the_end_is_reported_once(pipeline: Pipeline) -> None:
    coming = pipeline.forecast("vae", "encode")
    for stage in ("vae", "encode"):
        coming.note(stage, RAN, pipeline.show)
        coming.end(pipeline.show)
    coming.end(pipeline.show)
    assert pipeline.shown[2:] == ["pipeline: 2 of 2 stages done"]


def test_without_stale_stages_nothing_is_reported(pipeline: Pipeline) -> None:
    coming = Forecast(pipeline.path, [])
    coming.note("fetch", SKIPPED, pipeline.show)
    coming.end(pipeline.show)
    assert pipeline.shown == []


def test_a_failed_stage_is_not_timed_and_still_to_come(pipeline: Pipeline) -> None:
    coming = pipeline.forecast("vae", "encode")
    coming.note("vae", RAN, pipeline.show)
    coming.note("vae", FAILED, pipeline.show)
    coming.end(pipeline.show)
    coming.note("vae", RAN, pipeline.show)
    first, again = pipeline.shown
    assert first == again and "0 of 2 stages done; still to come: vae, encode; not timed" in again
    assert not pipeline.path.exists()


def test_a_resumed_stage_is_not_timed(pipeline: Pipeline) -> None:
    pipeline.run(100, "vae")
    pipeline.run(10, "vae", line="vae: resuming at 90 of 100 steps")
    assert read_json(pipeline.path) == {"vae": 100}


def test_a_stage_that_nobody_expected_is_counted(pipeline: Pipeline) -> None:
    pipeline.forecast("encode").note("vae", RAN, pipeline.show)
    assert "0 of 2 stages done; still to come: vae, encode; not timed here yet" in pipeline.shown[0]


@pytest.mark.parametrize("damaged", ["{", "3", '{"vae": {"a digest of version 0.1": 5.0}}'])
def test_a_damaged_file_is_as_good_as_none(pipeline: Pipeline, damaged: str) -> None:
    pipeline.run(1, "vae")
    pipeline.path.write_text(damaged)
    pipeline.forecast("vae").note("vae", RAN, pipeline.show)
    assert "not timed here yet" in pipeline.shown[0]
