"""What a pipeline has still to do, and how long that took the last time."""

from pathlib import Path

import pytest

from tokenbridge.base.files import read_json
from tokenbridge.infra.dvc import CACHED, FAILED, RAN, SKIPPED
from tokenbridge.ops.runs.forecast import Forecast

STAGES = ["fetch", "vae", "encode", "train@base"]


class Pipeline:
    """Executions of ``STAGES`` in one folder, by a clock that stands still unless it is told to go on."""

    def __init__(self, folder: Path) -> None:
        self.path, self.seconds = folder / ".work/durations.json", 1000.0

    def forecast(self, *left: str) -> Forecast:
        return Forecast(self.path, left or STAGES, lambda: self.seconds)

    def run(self, seconds: float, *stages: str, line: str = "") -> None:
        """Each stage for so long, saying a line meanwhile."""
        coming = self.forecast(*stages)
        for stage in stages:
            coming.note(stage, RAN)
            coming.listen(line)
            self.seconds += seconds
        coming.end()


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def test_stages_to_come_are_told_with_their_durations_of_the_last_time(pipeline: Pipeline) -> None:
    pipeline.run(10, "fetch")
    pipeline.run(546, "vae")
    pipeline.run(35, "encode")
    coming = pipeline.forecast()
    coming.note("fetch", RAN)
    assert coming.note("vae", RAN) == (
        "pipeline: 1 of 4 stages done; still to come: vae (about 9:06), encode (about 0:35), "
        "train@base; about 9:41 and those that were not timed here yet"
    )


@pytest.mark.parametrize("outcome", [SKIPPED, CACHED])
def test_what_dvc_skips_takes_no_time(pipeline: Pipeline, outcome: str) -> None:
    pipeline.run(100, *STAGES)
    coming = pipeline.forecast()
    coming.note("fetch", RAN)
    assert (coming.note("vae", outcome), coming.note("encode", outcome)) == (None, None)
    assert coming.note("train@base", RAN) == (
        "pipeline: 3 of 4 stages done; still to come: train@base (about 1:40); about 1:40"
    )


def test_the_running_stage_is_told_by_its_own_progress_once_a_minute(pipeline: Pipeline) -> None:
    coming = pipeline.forecast("vae", "encode")
    coming.note("vae", RAN)
    assert coming.listen("vae: 10/1,000 steps  2/s  8:15 left  loss 1") is None
    pipeline.seconds += 60
    assert coming.listen("vae: 130/1,000 steps  2/s  7:15 left  loss 1") == (
        "pipeline: 0 of 2 stages done; still to come: vae (7:15 left), encode; "
        "about 7:15 and those that were not timed here yet"
    )
    pipeline.seconds += 30
    assert coming.listen("vae: 190/1,000 steps  2/s  6:45 left  loss 1") is None


def test_the_end_is_told_once(pipeline: Pipeline) -> None:
    coming = pipeline.forecast("vae", "encode")
    coming.note("vae", RAN)
    assert coming.end() is None
    coming.note("encode", RAN)
    assert coming.end() == "pipeline: 2 of 2 stages done"
    assert coming.end() is None


def test_where_nothing_is_stale_nothing_is_told(tmp_path: Path) -> None:
    coming = Forecast(tmp_path / "durations.json", [])
    coming.note("fetch", SKIPPED)
    assert coming.end() is None


def test_a_failed_stage_is_not_timed_and_still_to_come(pipeline: Pipeline) -> None:
    coming = pipeline.forecast("vae", "encode")
    coming.note("vae", RAN)
    coming.note("vae", FAILED)
    assert coming.end() is None
    assert "0 of 2 stages done; still to come: vae, encode; not timed" in str(coming.note("vae", RAN))
    assert not pipeline.path.exists()


def test_a_resumed_stage_is_not_timed(pipeline: Pipeline) -> None:
    pipeline.run(100, "vae")
    pipeline.run(10, "vae", line="vae: resuming at 90 of 100 steps")
    assert read_json(pipeline.path) == {"vae": 100}


def test_a_stage_that_nobody_expected_is_counted(pipeline: Pipeline) -> None:
    line = pipeline.forecast("encode").note("vae", RAN)
    assert line is not None
    assert "0 of 2 stages done; still to come: vae, encode; not timed here yet" in line


@pytest.mark.parametrize("damaged", ["{", "3", '{"vae": {"a digest of version 0.1": 5.0}}'])
def test_a_damaged_file_is_as_good_as_none(pipeline: Pipeline, damaged: str) -> None:
    pipeline.run(1, "vae")
    pipeline.path.write_text(damaged)
    assert "not timed here yet" in str(pipeline.forecast("vae").note("vae", RAN))
