"""What a pipeline has still to do, and how long that takes."""

from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from tests.infra.test_dvc import DVC_YAML
from tokenbridge.base.files import read_json
from tokenbridge.ops.runs.forecast import DURATIONS, REMEMBERED, TELL_SECONDS, Forecast, forecast

STAGES = ["fetch", "vae", "encode", "train@base"]


class Clock:
    """Stands still unless it is told to go on."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Pipeline:
    """Executions of ``STAGES`` in one folder."""

    def __init__(self, folder: Path) -> None:
        self.path, self.clock = folder / ".work/durations.json", Clock()

    def forecast(self, *left: str, settings: str = "same") -> Forecast:
        return Forecast(self.path, dict.fromkeys(STAGES, settings), list(left or STAGES), self.clock)

    def run(self, seconds: float, *stages: str, settings: str = "same", line: str = "") -> None:
        """Each stage for so long, saying a line meanwhile."""
        coming = self.forecast(*stages, settings=settings)
        for stage in stages:
            coming.start(stage)
            coming.listen(line)
            self.clock.seconds += seconds
        coming.end()


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def test_stages_to_come_are_told_with_their_durations_of_the_last_time(pipeline: Pipeline) -> None:
    pipeline.run(10, "fetch")
    pipeline.run(546, "vae")
    pipeline.run(35, "encode")
    coming = pipeline.forecast()
    coming.start("fetch")
    assert coming.start("vae") == (
        "pipeline: 1 of 4 stages done; still to come: vae (about 9:06), encode (about 0:35); "
        "not timed here yet: train@base; about 9:41 left for the others"
    )


def test_the_first_time_nothing_is_known(pipeline: Pipeline) -> None:
    line = pipeline.forecast("vae", "encode").start("vae")
    assert line == "pipeline: 0 of 2 stages done; still to come, not timed here yet: vae, encode"


def test_other_settings_are_named(pipeline: Pipeline) -> None:
    pipeline.run(5, "vae", settings="smoke")
    assert "vae (0:05 with other settings)" in pipeline.forecast("vae").start("vae")
    pipeline.run(100, "vae")
    pipeline.run(5, "vae", settings="smoke")
    assert "vae (about 1:40)" in pipeline.forecast("vae").start("vae")


def test_the_running_stage_is_told_by_its_own_progress(pipeline: Pipeline) -> None:
    pipeline.run(30, "encode")
    coming = pipeline.forecast("vae", "encode")
    coming.start("vae")
    pipeline.clock.seconds += TELL_SECONDS
    assert coming.listen("vae: 12/100 steps  5 s each  7:20 left  loss 3") == (
        "pipeline: 0 of 2 stages done; still to come: vae (7:20 left), encode (about 0:30); about 7:50 left"
    )


def test_it_is_told_once_a_minute_at_most(pipeline: Pipeline) -> None:
    coming = pipeline.forecast()
    coming.start("vae")
    reports = 0
    for _ in range(int(5 * TELL_SECONDS)):
        pipeline.clock.seconds += 1
        reports += coming.listen("vae: 12/100 steps  5 s each  7:20 left") is not None
    assert reports == 5


def test_without_progress_of_its_own_it_takes_what_is_left_of_the_last_time(pipeline: Pipeline) -> None:
    pipeline.run(100, "vae")
    coming = pipeline.forecast("vae")
    coming.start("vae")
    pipeline.clock.seconds += 40
    assert coming.seconds("vae") == 60
    pipeline.clock.seconds += 100
    assert "vae (longer than the last time)" in coming.line()


def test_what_dvc_skips_takes_no_time(pipeline: Pipeline) -> None:
    pipeline.run(100, *STAGES)
    coming = pipeline.forecast()
    coming.start("fetch")
    coming.finish()
    for stage in ("vae", "encode"):
        coming.skip(stage)
    assert coming.start("train@base") == (
        "pipeline: 3 of 4 stages done; still to come: train@base (about 1:40); about 1:40 left"
    )


def test_the_end_is_told_once(pipeline: Pipeline) -> None:
    coming = pipeline.forecast("vae", "encode")
    coming.start("vae")
    assert coming.end() is None
    coming.start("encode")
    assert coming.end() == "pipeline: 2 of 2 stages done"
    assert coming.end() is None


def test_where_nothing_is_stale_nothing_is_told(tmp_path: Path) -> None:
    coming = Forecast(tmp_path / "durations.json", dict.fromkeys(STAGES, "same"), [])
    coming.skip("fetch")
    assert coming.end() is None


def test_a_failed_stage_is_not_timed_and_still_to_come(pipeline: Pipeline) -> None:
    coming = pipeline.forecast("vae", "encode")
    coming.start("vae")
    coming.fail()
    assert coming.end() is None
    assert coming.start("vae").endswith("0 of 2 stages done; still to come, not timed here yet: vae, encode")
    assert not pipeline.path.exists()


def test_a_resumed_stage_is_not_timed(pipeline: Pipeline) -> None:
    pipeline.run(100, "vae")
    pipeline.run(10, "vae", line="vae: resuming at 90 of 100 steps")
    assert read_json(pipeline.path) == {"vae": {"same": 100}}


def test_a_stage_that_nobody_expected_is_counted(pipeline: Pipeline) -> None:
    assert (
        pipeline.forecast("encode")
        .start("vae")
        .endswith("0 of 2 stages done; still to come, not timed here yet: vae, encode")
    )


def test_durations_of_many_settings_do_not_pile_up(pipeline: Pipeline) -> None:
    for number in range(2 * REMEMBERED):
        pipeline.run(1, "vae", settings=str(number))
    kept = [str(number) for number in range(REMEMBERED, 2 * REMEMBERED)]
    assert list(read_json(pipeline.path)["vae"]) == kept


def test_a_damaged_file_is_as_good_as_none(pipeline: Pipeline) -> None:
    pipeline.run(1, "vae")
    pipeline.path.write_text("{")
    assert "not timed here yet" in pipeline.forecast("vae").start("vae")


def test_settings_of_a_stage_are_its_own_and_those_of_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(DVC_YAML))
    Repo.init(str(tmp_path), no_scm=True)

    def settings(text: str) -> dict[str, str]:
        (tmp_path / "params.yaml").write_text(text)
        return dict(forecast(tmp_path).settings)

    def differ(text: str) -> set[str]:
        return {name for name, digest in settings(text).items() if digest != before[name]}

    before = settings("{seed: 0, group: 1, launcher: {threads: 1}}")
    assert differ("{seed: 1, group: 1, launcher: {threads: 1}}") == {"last"}
    assert differ("{seed: 0, group: 2, launcher: {threads: 1}}") == {"first", "middle", "last"}
    assert differ("{seed: 0, group: 1, launcher: {threads: 2}}") == {"first", "middle", "last"}


def test_of_a_project_what_changed_is_to_come(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(DVC_YAML))
    (tmp_path / "params.yaml").write_text("{seed: 0, group: 1, launcher: {threads: 1}}")
    Repo.init(str(tmp_path), no_scm=True)
    coming = forecast(tmp_path)
    assert coming.left == ["first", "middle", "last"]
    coming.start("first")
    coming.finish()
    assert list(read_json(tmp_path / DURATIONS)) == ["first"]
    assert forecast(tmp_path).seconds("first") is not None
