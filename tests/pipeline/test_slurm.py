"""The pipeline's training on a real Slurm of two nodes."""

import os
import re
from collections.abc import Iterator

import pytest

from tests.infra.launching.driving import read_until, rest
from tests.pipeline.fixtures import TRAIN
from tests.pipeline.project import Project, first_match, wait_for
from tests.support.slurm import SlurmCluster
from tokenbridge.base.files import read_json

pytestmark = pytest.mark.cluster

ON_SLURM = ("launcher=slurm", "launcher.nodes=2", "launcher.processes=1", "launcher.slurm.gpus_per_node=0")
ON_SLURM += ("launcher.slurm.cpus_per_task=1", "launcher.slurm.time='0:10:00'", *Project.launching)
CHECKPOINT = "*/checkpoints/step-*"
RESUMING = "train: resuming at"


@pytest.fixture
def login_node(project: Project, slurm: SlurmCluster) -> Iterator[Project]:
    """The project where Slurm's commands are."""
    environment, there = project.environment, slurm.from_outside()
    project.environment = environment | there | {"PATH": f"{there['PATH']}{os.pathsep}{environment['PATH']}"}
    yield project
    project.environment = environment


def test_an_interrupted_training_goes_on_by_itself_and_ends_with_the_same_weights(
    login_node: Project, slurm: SlurmCluster, learnt_by_two: dict[str, str]
) -> None:
    with login_node.by_hand(*ON_SLURM):
        stage = login_node.start(*TRAIN)
        work = login_node.root / ".work/train@tiny"
        wait_for(lambda: first_match(work, CHECKPOINT), "checkpoint")
        (job,) = slurm.run("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
        slurm.run("scancel", "--batch", "--signal=USR2", job)  # what Slurm sends before a time limit
        output = read_until(stage, RESUMING)
        before = set(work.glob(CHECKPOINT))
        wait_for(lambda: set(work.glob(CHECKPOINT)) - before, "newer checkpoint")
        slurm.run("scontrol", "requeue", job)  # SIGTERM: what came after the last checkpoint is done again
        output += rest(stage)
        assert stage.returncode == 0, output
        assert re.search(r"train: asked to stop, and saved a checkpoint at step \d+ of \d+", output), output
        assert output.count(RESUMING) == 2
        assert {out: login_node.digest(out) for out in learnt_by_two} == learnt_by_two
        loss = read_json(login_node.root / "reports/train/tiny.json")["validation_loss"]
    run = login_node.runs("train@tiny")[-1]
    # from the nodes, by way of the stage
    assert (run.info.status, run.data.metrics["validation_loss"]) == ("FINISHED", loss)
    assert run.data.metrics.keys() >= {"gradient_norm", "gradient_norm_max", "loss_spikes", "learning_rate"}
    assert [path for path in login_node.artifacts(run) if path.startswith("workers/workers-")]
