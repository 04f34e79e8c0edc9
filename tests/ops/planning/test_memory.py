"""What one GPU holds: states, copies, and the largest batch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.planning.conftest import composed
from tokenbridge.engine.ema import Ema
from tokenbridge.engine.optim import build_optimizers
from tokenbridge.ops.planning.memory import GIB, optimizer_bytes
from tokenbridge.ops.planning.plan import memory_model
from tokenbridge.ops.planning.sizes import fresh_model
from tokenbridge.ops.planning.steps import activations
from tokenbridge.training.trainer import is_matrix

LARGE = memory_model(composed("experiment=imagenet_l", "launcher=slurm"), "large")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_states_are_what_the_training_makes(optimizer: str) -> None:
    config = composed("model=tiny", f"train.optimizer={optimizer}")
    recipe = config.models["tiny"].train
    model = fresh_model(config, config.models["tiny"])
    optimizers = build_optimizers(
        model, kind=optimizer, learning_rate=1e-3, weight_decay=0.0, betas=(0.9, 0.95), is_matrix=is_matrix
    )
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    for one in optimizers.values():
        one.step()
    kept = [value for one in optimizers.values() for state in one.state.values() for value in state.values()]
    measured = sum(value.numel() * value.element_size() for value in kept if value.ndim)
    assert optimizer_bytes(model, recipe) == measured

    found = memory_model(config, "tiny").at(1)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    averaged = Ema(model, 0.9, warmup=False).averages.values()
    assert found.weights == found.gradients == weights
    assert found.average == sum(average.numel() * average.element_size() for average in averaged)


def test_shards_hold_their_share() -> None:
    whole, shared = LARGE.at(1), LARGE.changed(sharded=True).at(1)
    assert shared.states == pytest.approx(whole.states / LARGE.cluster.gpus)
    assert shared.total < whole.total


def test_ddps_buckets_are_the_gradients_themselves() -> None:
    assert LARGE.at(1).buckets == 0
    assert LARGE.changed(sharded=True).at(1).buckets > 0


def test_one_process_has_no_gradients_when_its_backward_begins() -> None:
    alone = LARGE.changed(nodes=1, gpus_per_node=1)
    parted = alone.changed(accumulation=2)
    assert alone.at(64).early == 0
    assert parted.at(64).early == LARGE.at(64).early == LARGE.at(64).gradients
    assert parted.at(64).total - alone.at(64).total == alone.at(64).gradients
    assert alone.at(1).total == alone.at(1).states + alone.at(1).update


@settings(deadline=None)
@given(limit=st.floats(1, 600), images=st.integers(1, 4096), gpus=st.sampled_from([1, 8]), sharded=st.booleans())
def test_parts_fit_and_fewer_do_not(limit: float, images: int, gpus: int, sharded: bool) -> None:
    memory = LARGE.changed(nodes=1, gpus_per_node=gpus, sharded=sharded)

    def fits(parts: int) -> bool:
        parted = memory.changed(accumulation=parts)
        return parted.at(-(-images // parts)).total <= limit * GIB

    parts = memory.parts(images, limit * GIB)
    assert fits(parts) if parts else not fits(images)
    assert parts < 2 or not fits(parts - 1)


@settings(deadline=None)
@given(limit=st.floats(1, 600), checkpointed=st.booleans(), sharded=st.booleans())
def test_the_largest_batch_fits_and_one_more_does_not(limit: float, checkpointed: bool, sharded: bool) -> None:
    memory = LARGE.changed(checkpointed=checkpointed, sharded=sharded)
    largest = memory.largest(limit * GIB)
    assert largest == 0 or memory.at(largest).total <= limit * GIB
    assert memory.at(largest + 1).total > limit * GIB


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("masked", [180, 200, 220])
def test_no_mask_needs_more_than_the_plan_says(masked: int, checkpointed: bool) -> None:
    memory = LARGE.changed(checkpointed=checkpointed)
    needed = activations(memory.model, masked, memory.precision, checkpointed).total
    assert needed <= memory.at(1).activations.total * (1 + 1e-9)


def test_the_released_batch_needs_checkpointing() -> None:
    """64 images a GPU; its authors trained L on A100 with gradient checkpointing."""
    assert LARGE.at(64).total > 80 * GIB
    assert LARGE.changed(checkpointed=True).at(64).total < 80 * GIB
