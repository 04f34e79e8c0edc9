"""What every stage shares."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenbridge.base.errors import UserError
from tokenbridge.stages.runtime import WORK, StageRun, stage_run


def events(repository: Path) -> list[dict[str, Any]]:
    """Of all runs so far, in turn."""
    files = sorted((repository / ".spool").glob("*/events.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def tags_of(repository: Path) -> list[dict[str, str]]:
    return [event["values"] for event in events(repository) if event["type"] == "tags"]


def work_of(repository: Path) -> list[Path]:
    return [path for path in (repository / WORK / "encode").glob("*") if path.is_dir()]


def write_moments(run: StageRun) -> None:
    (run.work / "moments").mkdir()
    (run.work / "moments/shard.npy").write_bytes(b"1234")
    (run.work / "validation_moments").mkdir()
    run.publish(run.work / "moments", "data/moments")
    run.publish(run.work / "validation_moments", "data/validation_moments")


def test_outs_replace_what_was_there_and_are_recorded_and_the_work_goes(repository: Path) -> None:
    old = repository / "data/moments/old.npy"
    old.parent.mkdir(parents=True)
    old.touch()
    with stage_run("encode") as run:
        write_moments(run)
    assert [path.name for path in (repository / "data/moments").iterdir()] == ["shard.npy"]
    assert not work_of(repository)
    recorded = events(repository)
    assert {
        "type": "params",
        "values": {"encode": {"images": None, "flip": False, "precision": "auto"}},
    }.items() <= recorded[1].items()
    tags = {key: value for values in tags_of(repository) for key, value in values.items()}
    assert tags["dep.models/vae"] == "absent"
    assert tags["out.data/moments"].endswith(" 4 bytes")
    assert [event["folder"] for event in recorded if event["type"] == "artifact"] == ["data/moments"]
    assert recorded[-1]["status"] == "FINISHED"


@pytest.mark.parametrize("place", [".work", ".spool", "data"])
def test_a_place_that_cannot_be_written_is_named_in_one_line(
    repository: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / place).write_text("no folder")
    with pytest.raises(SystemExit), stage_run("encode") as run:
        write_moments(run)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"encode: {repository / place}")


def test_a_mistake_keeps_the_work_and_a_rerun_resumes_it_with_the_same_settings_only(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), stage_run("encode") as run:
        (run.work / "half").touch()
        first = run
        raise UserError("cat.jpg is truncated: replace it")
    assert capsys.readouterr().err == "encode: cat.jpg is truncated: replace it\n"
    assert events(repository)[-1]["status"] == "FAILED"

    params = repository / "params.yaml"
    settings = params.read_text()
    params.write_text(settings.replace("flip: false", "flip: true"))
    with pytest.raises(SystemExit), stage_run("encode") as run:
        assert run.work != first.work
        raise RuntimeError("no mistake of the user")
    assert capsys.readouterr().err.startswith("encode: RuntimeError: no mistake of the user (log: ")
    params.write_text(settings)
    with stage_run("encode") as run:
        assert (run.work / "half").exists()
    resumed = [tags["resumed_from"] for tags in tags_of(repository) if "resumed_from" in tags]
    assert resumed == [first.tracker.id]


SECOND = """
from tokenbridge.stages.runtime import stage_run
with stage_run("encode"):
    print("inside", flush=True)
"""


def test_a_second_writer_waits(repository: Path) -> None:
    with stage_run("encode") as run:
        write_moments(run)
        second = subprocess.Popen([sys.executable, "-c", SECOND], stdout=subprocess.PIPE, text=True, cwd=repository)
        assert second.stdout is not None
        assert "another process is using" in second.stdout.readline()
        assert run.work.exists()
    assert second.stdout.read() == "inside\n"
    assert second.wait() == 0


def test_a_bad_setting_stops_a_stage_before_it_starts(repository: Path) -> None:
    params = repository / "params.yaml"
    params.write_text(params.read_text().replace("flip: false", "flip: perhaps"))
    with pytest.raises(SystemExit), stage_run("encode"):
        pytest.fail("it started")
    assert not (repository / ".spool").exists()


def test_a_report_does_not_bend_the_curves(repository: Path) -> None:
    with stage_run("classifier") as run:
        run.tracker.metrics({"loss": 2.0}, step=1)
        run.tracker.metrics({"loss": 1.0}, step=2)
        (run.work / "model").mkdir()
        run.publish(run.work / "model", "models/classifier")
        (run.work / "metrics.json").write_text('{"loss": 1.0, "test_accuracy": 0.5, "protocol": {"seed": 7}}')
        run.publish(run.work / "metrics.json", "reports/classifier.json")
    assert {"protocol": {"seed": 7}} in [event.get("values") for event in events(repository)]
    metrics = [event for event in events(repository) if event["type"] == "metrics"]
    assert {"test_accuracy": 0.5} in [event["values"] for event in metrics]
    assert [event["step"] for event in metrics if "loss" in str(event["values"])] == [1, 2]
