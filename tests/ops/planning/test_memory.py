"""What one GPU holds: states, copies, and the largest batch."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.planning.conftest import composed
from tokenbridge.engine.ema import Ema
from tokenbridge.engine.optim import build_optimizers
from tokenbridge.ops.planning.memory import GIB, optimizer_bytes
from tokenbridge.ops.planning.plan import memory_model
from tokenbridge.ops.planning.sizes import fresh_model
from tokenbridge.ops.planning.steps import Step, activations
from tokenbridge.training.trainer import is_matrix

pytestmark = pytest.mark.pipeline  # for their time alone

LARGE = memory_model(composed("experiment=imagenet_l", "launcher=slurm", "launcher.nodes=4"), "large")
GROUP = 64  # images with one mask ratio


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_states_are_what_the_training_makes(optimizer: str) -> None:
    config = composed("experiment=paper", f"train.optimizer={optimizer}")
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


@settings(deadline=None, max_examples=30)
@given(limit=st.floats(1, 600), images=st.integers(1, 4096), gpus=st.sampled_from([1, 8]), sharded=st.booleans())
def test_parts_fit_and_fewer_do_not(limit: float, images: int, gpus: int, sharded: bool) -> None:
    memory = LARGE.changed(nodes=1, gpus_per_node=gpus, sharded=sharded)

    def fits(parts: int) -> bool:
        parted = memory.changed(accumulation=parts)
        size = -(-images // parts)
        return size <= GROUP and parted.at(size).total <= limit * GIB

    parts = memory.parts(images, limit * GIB)
    assert fits(parts) if parts else not fits(images)
    assert parts < 2 or not fits(parts - 1)


@settings(deadline=None, max_examples=30)
@given(limit=st.floats(1, 600), checkpointed=st.booleans(), sharded=st.booleans())
def test_the_largest_batch_fits_and_one_more_does_not(limit: float, checkpointed: bool, sharded: bool) -> None:
    memory = LARGE.changed(checkpointed=checkpointed, sharded=sharded)
    largest = memory.largest(limit * GIB)
    assert largest == 0 or memory.at(largest).total <= limit * GIB
    assert largest == GROUP or memory.at(largest + 1).total > limit * GIB


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("masked", [180, 200, 220])
def test_no_mask_needs_more_than_the_plan_says(masked: int, checkpointed: bool) -> None:
    memory = LARGE.changed(checkpointed=checkpointed)
    needed = activations(memory.model, Step(masked, memory.precision, checkpointed), GROUP).total
    assert needed <= memory.at(GROUP).activations.total * (1 + 1e-9)


def test_the_released_batch_fits_because_the_head_is_computed_by_parts() -> None:
    """64 images a GPU; its authors trained L on A100 with gradient checkpointing, which computes a third more."""
    assert LARGE.at(64).total < 48 * GIB
    whole = activations(LARGE.model, Step(256, LARGE.precision, whole_head=True), 64)
    assert LARGE.at(64).total - LARGE.at(64).activations.total + whole.total > 80 * GIB


def test_parts_end_where_mask_groups_do_and_the_head_has_at_most_16384_sequences() -> None:
    config = composed("experiment=imagenet_l", "launcher=slurm")
    eight = memory_model(config, "large").cluster
    batch = config.models["large"].train.batch_size
    assert (eight.gpus, eight.accumulation, eight.images_at_once(batch)) == (8, 4, GROUP)
    assert LARGE.cluster.accumulation == 1
    assert LARGE.largest(1e15) * LARGE.model.positions == 16_384


@pytest.mark.parametrize(("images", "gib"), [(1, 0.125), (4, 0.5), (8, 1), (64, 1)])
def test_fused_attention_has_its_scratch_memory(images: int, gib: float) -> None:
    """float32 [256 positions, 8 heads, 128, 128] for an image of L; of at most 2,048 positions at once."""
    memory = LARGE.at(images)
    assert memory.scratch == pytest.approx(gib * GIB, rel=1e-8)
    assert memory.total - replace(memory, scratch=0).total == memory.scratch
