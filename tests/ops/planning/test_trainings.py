"""Planned bytes of a GPU against those that real trainings take, on CPUs: ``Trainer.step`` as it is."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ops.planning.conftest import composed
from tests.ops.planning.measuring import WIDE, peak_of_a_step, planned, trainer_of
from tests.support.parallel_runs import run_processes
from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.flops import vae_flops
from tokenbridge.ops.planning.plan import memory_model

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


@pytest.mark.pipeline  # for its time alone
@pytest.mark.parametrize("changes", STEPS.values(), ids=STEPS)
def test_a_step_takes_the_planned_memory(changes: list[str], tmp_path: Path) -> None:
    config = composed(*WIDE, *changes)
    trainer = trainer_of(config, tmp_path, SINGLE_PROCESS)
    cluster = Cluster.of(config.launcher, trainer.recipe)
    plan = planned(config, cluster, cluster.images_at_once(trainer.recipe.batch_size))
    assert plan.total == pytest.approx(peak_of_a_step(trainer, tmp_path / "trace.json"), rel=0.1)


def test_an_image_of_512_pixels_is_planned_and_trained_on(tmp_path: Path) -> None:
    narrow = ("width=32", "heads=2", "encoder_depth=1", "decoder_depth=1")
    narrow += ("head_width=32", "head_heads=2", "head_depth=1", "buffer_size=2")
    sizes = [f"models.large.{size}" for size in narrow]
    sizes += ["train.batch_size=2", "train.mask_group_size=2", "train.precision=fp32"]
    config = composed("experiment=imagenet_l_512", *sizes)
    assert memory_model(config, "large").at(2).total > 0
    assert vae_flops(config)[1] == pytest.approx(4 * 250e9, rel=0.1)  # of four times the pixels
    trainer = trainer_of(config, tmp_path, SINGLE_PROCESS)
    assert trainer.model.positions == 1024
    before = trainer.model.output_position.clone()
    assert math.isfinite(trainer.step(0)["loss"])
    assert not torch.equal(trainer.model.output_position, before)


@pytest.mark.pipeline
def test_two_processes_hold_the_planned_shards(tmp_path: Path) -> None:
    run_processes(PROCESSES, "tests.ops.planning.sharded_training", str(tmp_path), *SHARDED)
    config = composed(*SHARDED)
    (model,) = config.models.values()
    cluster = replace(Cluster.of(config.launcher, model.train), gpus_per_node=PROCESSES)
    plan = planned(config, cluster, cluster.images_at_once(model.train.batch_size))
    for rank in range(PROCESSES):
        held = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in ("weights", "gradients", "optimizer", "average"):
            assert getattr(plan, name) == pytest.approx(held[name], rel=0.1), name
        # the plan adds up what is gathered and what is sent, which do not quite meet
        assert held["peak"] <= plan.total <= 1.15 * held["peak"]
