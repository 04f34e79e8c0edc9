"""The pipeline's training on a real Slurm of two nodes."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.pipeline.project import PATIENCE, Project, outcomes, wait_for
from tests.slurm import SlurmCluster

pytestmark = pytest.mark.slow

ON_SLURM = ("launcher=slurm", "launcher.nodes=2", "launcher.processes=1", "launcher.slurm.gpus_per_node=0")
ON_SLURM += ("launcher.slurm.cpus_per_task=1", "launcher.slurm.time='0:10:00'", *Project.launching)
WEIGHTS = "models/tiny/transformer"


class SlurmProject:
    """The project, driven from the cluster's login node."""

    def __init__(self, project: Project, slurm: SlurmCluster) -> None:
        self.project, self.slurm = project, slurm

    def start_repro(self) -> subprocess.Popen[str]:
        self.project.settled = False
        command = ("python", "-m", "tokenbridge.cli", "repro", *Project.overrides, *ON_SLURM)
        return self.slurm.start(*command, cwd=self.project.root, **self.project.environment)

    def job(self) -> str | None:
        """The newest job that runs."""
        jobs = self.slurm.run("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
        return max(jobs, key=int) if jobs else None


def end(repro: subprocess.Popen[str]) -> str:
    output, _ = repro.communicate(timeout=PATIENCE)
    assert repro.returncode == 0, output
    return output


@pytest.fixture
def on_slurm(project: Project, slurm: SlurmCluster) -> Iterator[SlurmProject]:
    """The project, with the model that one process trains before and after."""
    project.settle()
    yield SlurmProject(project, slurm)
    project.forget("train@tiny")
    project.repro()


def test_a_preempted_training_goes_on_by_itself_and_ends_with_the_same_weights(on_slurm: SlurmProject) -> None:
    project = on_slurm.project
    project.forget("train@tiny")
    output = end(on_slurm.start_repro())
    assert outcomes(output)["train@tiny"] == "ran"
    undisturbed = project.digest(WEIGHTS)

    project.forget("train@tiny")
    repro = on_slurm.start_repro()
    wait_for(lambda: next((project.root / ".work/train@tiny").glob("*/checkpoints/step-*"), None), "checkpoint")
    job = wait_for(on_slurm.job, "job")
    on_slurm.slurm.run("scancel", "--batch", "--signal=USR2", job)  # what Slurm sends before a time limit
    output = end(repro)
    assert re.search(r"train: asked to stop, saved at step \d+ of \d+", output), output
    assert "train: resuming at" in output
    assert project.digest(WEIGHTS) == undisturbed
    first, second = project.runs("train@tiny")[-2:]
    assert (first.info.status, second.info.status) == ("FINISHED", "FINISHED")
    assert first.data.metrics["loss"] == second.data.metrics["loss"]
    assert outcomes(output)["generate@tiny"] == "skipped"  # the same model for DVC, too
