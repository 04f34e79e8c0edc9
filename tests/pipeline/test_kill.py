"""``kill -9`` in the middle of a stage, then ``repro``: it resumes, and ends as if nothing had happened."""

import subprocess
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.pipeline.project import Project, descendant, first_match, outcomes, wait_for
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.pipeline

WEIGHTS = "models/tiny/transformer"


def start_until(project: Project, stage: str, file: str, *command: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """The command (``repro``) and its stage process, at the moment when the stage's work folder has a new ``file``."""
    work = project.root / ".work" / stage
    before = set(work.glob(f"*/{file}"))
    repro = project.start(*command) if command else project.start_repro()
    # the process first: a search for it after the file may take longer than the rest of the work
    process = wait_for(lambda: descendant(repro, "-m", "tokenbridge.stages", stage), f"process of {stage}")
    wait_for(lambda: first_match(work, f"*/{file}", before), f"{file} of {stage}")
    assert process.is_running(), f"{stage} ended before it could be stopped"
    return repro, process


def finish(repro: subprocess.Popen[str]) -> str:
    output, _ = repro.communicate(timeout=PATIENCE)
    return output


def is_over(process: psutil.Process) -> bool:
    """Return whether the process has ended, also if its parent has not yet collected the exit code."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def leftovers(project: Project, stage: str) -> list[Path]:
    """Half-written files, and work folders of a stage that has ended well."""
    work = [path for path in (project.root / ".work" / stage).iterdir() if path.is_dir()]
    return work + [path for folder in ("data", "models", "reports") for path in (project.root / folder).rglob(".*")]


def test_sampling_resumes_after_repro_was_killed(project: Project) -> None:
    project.settle()
    uninterrupted = project.digest("data/samples/tiny")
    project.forget("generate@tiny")
    repro, stage = start_until(project, "generate@tiny", "drawn/chunk-00000000.npy")
    stage.suspend()  # the second chunk takes no longer than the stage needs to notice
    repro.kill()
    repro.wait()
    stage.resume()
    finish(repro)

    output = project.repro()
    assert is_over(stage)  # it has ended with its repro, or was awaited
    assert "generate: resuming at 250 of 500 images" in output
    assert project.digest("data/samples/tiny") == uninterrupted
    assert outcomes(output)["evaluate@tiny"] == "skipped"
    assert project.runs("generate@tiny")[-2].info.status == "KILLED"
    assert not leftovers(project, "generate@tiny")


def test_a_training_survives_kills_of_itself_and_of_dvc_with_the_same_weights(project: Project) -> None:
    project.settle()
    uninterrupted = project.digest(WEIGHTS)
    project.forget("train@tiny")
    until = ("train@tiny", "checkpoints/step-*")

    repro, stage = start_until(project, *until)
    stage.kill()
    output = finish(repro)
    assert repro.returncode != 0
    assert "the pipeline stopped at the stage above" in output
    assert "Traceback" not in output
    assert project.runs("pipeline")[-1].info.status == "FAILED"

    repro, stage = start_until(project, *until)
    dvc = descendant(repro, "-Pm", "dvc")
    assert dvc is not None
    dvc.kill()
    assert "train: resuming at" in finish(repro)
    assert repro.returncode != 0
    assert is_over(stage)  # it ends with its dvc

    bare_dvc, orphan = start_until(project, *until, "dvc", "repro")
    orphan.suspend()  # so that it surely lives when the next one starts; it ends when it can
    assert not first_match(project.root / ".work/train@tiny", "*/pipeline"), "the training was over too early"
    bare_dvc.kill()
    bare_dvc.wait()
    last = project.start_repro()
    assert last.stdout is not None
    waiting = next(line for line in last.stdout if "waiting for it" in line)
    assert "another process is using" in waiting
    orphan.resume()
    output = finish(last)
    assert last.returncode == 0, output
    assert "train: resuming at" in output
    assert project.digest(WEIGHTS) == uninterrupted
    assert outcomes(output)["generate@tiny"] == "skipped"  # the weights are the same for DVC too
    assert not leftovers(project, "train@tiny")
    runs = project.runs("train@tiny")[-4:]
    assert (runs[0].info.status, runs[-1].info.status) == ("KILLED", "FINISHED")
    for interrupted, resumed in pairwise(runs):
        assert resumed.data.tags["resumed_from"] == interrupted.data.tags["spool"]
