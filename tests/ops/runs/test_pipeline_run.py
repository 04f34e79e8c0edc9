"""The run around DVC's stages."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.checkout import CHECKOUT
from tests.support.dvc import init_dvc
from tokenbridge.base.subprocesses import StageFailedError
from tokenbridge.config import ConfigError
from tokenbridge.config.params import PARAMS_FILE
from tokenbridge.infra.dvc import LOCK_FILE, RAN, SKIPPED
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.ops.runs.freshness import FETCHED
from tokenbridge.ops.runs.pipeline_run import PipelineRun, pipeline_run


def test_a_failure_is_raised_once_even_if_its_cause_prevents_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(CHECKOUT / name, tmp_path)
    init_dvc(tmp_path)
    # nothing is sent
    monkeypatch.setattr("tokenbridge.ops.runs.pipeline_run.LiveSync", lambda *_, **__: nullcontext(SimpleNamespace()))
    with pytest.raises(StageFailedError, match="as dvc says") as caught, pipeline_run(tmp_path):
        (tmp_path / LOCK_FILE).write_text("<<<<<<< a conflict")
        raise StageFailedError("as dvc says")
    assert len(caught.value.__notes__) == 1
    (events,) = (tmp_path / ".spool").glob("*-pipeline-*/events.jsonl")
    assert json.loads(events.read_text().splitlines()[-1])["status"] == "FAILED"


def test_processes_that_cannot_train_a_model_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(CHECKOUT / "conf")
    overrides = ["launcher=multi_gpu", "launcher.strategy=fsdp"]  # the default's optimizer is Muon
    with pytest.raises(ConfigError, match="=muon needs whole"), pipeline_run(tmp_path, overrides):
        pass
    assert not (tmp_path / PARAMS_FILE).exists()


TWO_STAGES = """
stages:
  first: {cmd: cp source first, deps: [source], outs: [first]}
  second: {cmd: cat first more > second, deps: [first, more], outs: [second]}
"""


def test_dvc_is_started_for_the_stages_alone_that_may_have_to_run(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(TWO_STAGES)
    for name in ("source", "more"):
        (tmp_path / name).write_text(name)
    init_dvc(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "more").write_text(" and more")
    lines: list[str] = []
    run = PipelineRun(tmp_path, Tracker.open("test", "key", tmp_path, system_interval=0))
    assert run.bring_up_to_date("first", lines.append) == SKIPPED
    assert lines == ["Stage 'first' didn't change, skipping"]
    assert run.bring_up_to_date("second", lines.append) == RAN
    assert "Running stage 'second':" in lines
    assert (tmp_path / "second").read_text() == "source and more"
    assert run.bring_up_to_date("second", lines.append) == RAN  # it ran in this run


STOPPED = """
stages:
  fetch: {cmd: cp source images, deps: [source], outs: [images]}
  stopped: {cmd: test -s .work/fetched_source && false, deps: [images], outs: [other]}
"""


def test_the_source_of_the_images_is_noted_before_the_next_stage_could_be_killed(tmp_path: Path) -> None:
    """Otherwise the next run would fetch all images again."""
    (tmp_path / "dvc.yaml").write_text(STOPPED)
    (tmp_path / "source").write_text("source")
    init_dvc(tmp_path)
    run = PipelineRun(tmp_path, Tracker.open("test", "key", tmp_path, system_interval=0), source_state="a state")
    with pytest.raises(StageFailedError):
        run.dvc(["repro"], print)
    assert (tmp_path / FETCHED).read_text() == "a state"
