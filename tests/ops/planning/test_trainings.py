"""Planned bytes of a GPU against those that real trainings take, on CPUs: ``Trainer.step`` as it is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ops.planning.conftest import composed
from tests.ops.planning.measuring import WIDE, peak_of_a_step, planned, trainer_of
from tests.support.parallel_runs import run_processes
from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.ops.planning.cluster import Cluster

ADAMW = "train.optimizer=adamw"
STEPS = {
    "the update is the peak": [ADAMW, "train.batch_size=2"],
    "activations are": [ADAMW, "train.batch_size=32"],
    "fp32": [ADAMW, "train.batch_size=16", "train.precision=fp32"],
    "checkpointed": [ADAMW, "train.batch_size=32", "launcher.checkpoint_activations=true"],
    "in two parts": [ADAMW, "train.batch_size=32", "launcher.accumulation=2"],
    "muon": ["train.optimizer=muon", "train.batch_size=2"],
}
SHARDED = [*WIDE, ADAMW, "train.batch_size=16", "train.precision=fp32", "launcher.strategy=fsdp"]
PROCESSES = 2


@pytest.mark.parametrize("changes", STEPS.values(), ids=STEPS)
def test_a_step_takes_the_planned_memory(changes: list[str], tmp_path: Path) -> None:
    config = composed(*WIDE, *changes)
    cluster = Cluster.of(config.launcher)
    trainer = trainer_of(config, tmp_path, SINGLE_PROCESS)
    plan = planned(config, cluster, cluster.images_at_once(trainer.recipe.batch_size))
    assert plan.total == pytest.approx(peak_of_a_step(trainer, tmp_path / "trace.json"), rel=0.1)


@pytest.mark.pipeline
def test_two_processes_hold_the_planned_shards(tmp_path: Path) -> None:
    run_processes(PROCESSES, "tests.ops.planning.sharded_training", str(tmp_path), *SHARDED)
    config = composed(*SHARDED)
    (model,) = config.models.values()
    cluster = replace(Cluster.of(config.launcher), gpus_per_node=PROCESSES)
    plan = planned(config, cluster, cluster.images_at_once(model.train.batch_size))
    for rank in range(PROCESSES):
        held = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in ("weights", "gradients", "optimizer", "average"):
            assert getattr(plan, name) == pytest.approx(held[name], rel=0.1), name
        # the plan adds up what is gathered and what is sent, which do not quite meet
        assert held["peak"] <= plan.total <= 1.15 * held["peak"]
