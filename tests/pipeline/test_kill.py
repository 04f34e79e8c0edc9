"""``kill -9`` in the middle of a stage, then ``repro``: it resumes, and ends as if nothing had happened."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.pipeline.project import PATIENCE, Project, descendant, first_match, outcomes, wait_for

pytestmark = pytest.mark.pipeline

WEIGHTS = "models/tiny/transformer"


def start_until(project: Project, stage: str, file: str, *command: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """The command (``repro``) and its stage process, at the moment when the stage's work folder has ``file``."""
    module, _, model = stage.partition("@")
    repro = project.start(*command) if command else project.start_repro()
    # the process first: a search for it after the file may take longer than the rest of the work
    process = wait_for(lambda: descendant(repro, "-m", f"tokenbridge.stages.{module}", model), f"process of {stage}")
    wait_for(lambda: first_match(project.root / ".work" / stage, f"*/{file}"), f"{file} of {stage}")
    assert process.is_running(), f"{stage} ended before it could be stopped"
    return repro, process


def finish(repro: subprocess.Popen[str]) -> str:
    output, _ = repro.communicate(timeout=PATIENCE)
    return output


def is_over(process: psutil.Process) -> bool:
    """Also if nobody has asked for its exit code yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def leftovers(project: Project, stage: str) -> list[Path]:
    """Half-written files, and work folders of a stage that has ended well."""
    work = [path for path in (project.root / ".work" / stage).iterdir() if path.is_dir()]
    return work + [path for folder in ("data", "models", "reports") for path in (project.root / folder).rglob(".*")]


def test_a_killed_training_resumes_and_ends_with_the_same_weights(project: Project) -> None:
    project.settle()
    uninterrupted = project.digest(WEIGHTS)
    project.forget("train@tiny")
    repro, stage = start_until(project, "train@tiny", "checkpoints/step-*")
    stage.kill()
    output = finish(repro)
    assert repro.returncode != 0
    assert "the pipeline stopped at the stage above" in output
    assert "Traceback" not in output
    assert project.runs("pipeline")[-1].info.status == "FAILED"

    output = project.repro()
    assert "train: resuming at" in output
    assert project.digest(WEIGHTS) == uninterrupted
    assert outcomes(output)["generate@tiny"] == "skipped"  # the weights are the same for DVC too
    killed, resumed = project.runs("train@tiny")[-2:]
    assert (killed.info.status, resumed.info.status) == ("KILLED", "FINISHED")
    assert resumed.data.tags["resumed_from"] == killed.data.tags["spool"]
    assert not leftovers(project, "train@tiny")


def test_a_stage_that_outlives_its_dvc_is_waited_for(project: Project) -> None:
    project.settle()
    uninterrupted = project.digest(WEIGHTS)
    project.forget("train@tiny")
    dvc, orphan = start_until(project, "train@tiny", "checkpoints/step-*", "dvc", "repro")
    orphan.suspend()  # so that it surely lives when the next one starts
    assert not list((project.root / ".work/train@tiny").glob("*/pipeline")), (
        "the training was over before it was stopped"
    )
    dvc.kill()
    dvc.wait()
    second = project.start_repro()
    assert second.stdout is not None
    waiting = next(line for line in second.stdout if "waiting for it" in line)
    assert "another process is using" in waiting
    orphan.resume()
    output = finish(second)
    assert second.returncode == 0, output
    assert "train: resuming at" in output  # at the end, which the orphan has reached
    assert project.digest(WEIGHTS) == uninterrupted
    assert not leftovers(project, "train@tiny")


def test_a_killed_dvc_takes_its_stage_with_it(project: Project) -> None:
    project.settle()
    uninterrupted = project.digest(WEIGHTS)
    project.forget("train@tiny")
    repro, stage = start_until(project, "train@tiny", "checkpoints/step-*")
    dvc = descendant(repro, "-m", "dvc")
    assert dvc is not None
    dvc.kill()
    finish(repro)
    assert repro.returncode != 0
    assert is_over(stage)
    assert "train: resuming at" in project.repro()
    assert project.digest(WEIGHTS) == uninterrupted
    assert not leftovers(project, "train@tiny")


def test_sampling_resumes_after_its_whole_group_was_killed(project: Project) -> None:
    project.settle()
    uninterrupted = project.digest("data/samples/tiny")
    project.forget("generate@tiny")
    repro, stage = start_until(project, "generate@tiny", "drawn/chunk-00000000.npy")
    group = os.getpgid(stage.pid)
    killed = psutil.Process(repro.pid).children(recursive=True)
    repro.kill()
    os.killpg(group, signal.SIGKILL)
    finish(repro)
    psutil.wait_procs(killed, timeout=PATIENCE)  # dvc believes its lock held as long as its old process can be seen

    output = project.repro()
    assert "generate: resuming at 250 of 500 images" in output
    assert project.digest("data/samples/tiny") == uninterrupted
    assert outcomes(output)["evaluate@tiny"] == "skipped"
    assert project.runs("generate@tiny")[-2].info.status == "KILLED"
    assert not leftovers(project, "generate@tiny")
