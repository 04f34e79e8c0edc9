"""The pipeline's training on a real Slurm of two nodes."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.pipeline.project import PATIENCE, Project, first_match, wait_for
from tests.slurm import SlurmCluster

pytestmark = pytest.mark.slow

ON_SLURM = ("launcher=slurm", "launcher.nodes=2", "launcher.processes=1", "launcher.slurm.gpus_per_node=0")
ON_SLURM += ("launcher.slurm.cpus_per_task=1", "launcher.slurm.time='0:10:00'", *Project.launching)
WEIGHTS = "models/tiny/transformer"
TRAIN = ("tokenbridge.stages.train", "tiny")
COMMAND = "tokenbridge.cli"


@pytest.fixture
def on_slurm(project: Project) -> Iterator[Project]:
    """The project, told to train on two nodes."""
    with project.by_hand(*ON_SLURM):
        yield project


def start(project: Project, slurm: SlurmCluster, module: str, *arguments: str) -> subprocess.Popen[str]:
    """A command of the project, on the cluster's login node."""
    return slurm.start("python", "-m", module, *arguments, cwd=project.root, **project.environment)


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def test_a_preempted_training_goes_on_by_itself_and_ends_with_the_same_weights(
    on_slurm: Project, slurm: SlurmCluster
) -> None:
    end(start(on_slurm, slurm, *TRAIN))
    undisturbed = on_slurm.digest(WEIGHTS)

    stage = start(on_slurm, slurm, *TRAIN)
    work = on_slurm.root / ".work/train@tiny"
    wait_for(lambda: first_match(work, "*/checkpoints/step-*"), "checkpoint")
    (job,) = slurm.run("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
    slurm.run("scancel", "--batch", "--signal=USR2", job)  # what Slurm sends before a time limit
    output = end(stage)
    assert re.search(r"train: asked to stop, saved at step \d+ of \d+", output), output
    assert "train: resuming at" in output
    assert on_slurm.digest(WEIGHTS) == undisturbed
    first, second = on_slurm.runs("train@tiny")[-2:]
    assert (first.info.status, second.info.status) == ("FINISHED", "FINISHED")
    assert first.data.metrics["loss"] == second.data.metrics["loss"]  # from the nodes, by way of the stage
    assert [path for path in on_slurm.artifacts(second) if path.startswith("workers/workers-")]


def test_a_run_made_on_slurm_is_reproduced_there(project: Project, slurm: SlurmCluster) -> None:
    project.settle()
    project.settled = False
    made = end(start(project, slurm, COMMAND, "repro", *project.overrides, *ON_SLURM, "train.epochs=1"))
    jobs = re.findall(r"Slurm job (\d+) ended", made)
    pipeline = project.runs("pipeline")[-1].info.run_id
    output = end(start(project, slurm, COMMAND, "reproduce", pipeline, "--recompute"))
    assert "the same bits" in output
    assert output.count("Slurm job") > len(jobs)
