"""The draws of a step: masks as the released code draws them, groups of images with one mask ratio, dropped labels."""

import re
from dataclasses import replace
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import truncnorm

from tests.support.small_model import LAUNCHER, RECIPE, random_model
from tokenbridge.base.checks import ConfigError
from tokenbridge.base.seeding import generator
from tokenbridge.config import TrainConfig
from tokenbridge.config.params import compose_config, validate
from tokenbridge.training.batches import Batch, batch_loss, draw_batch, num_masked_positions, predicted_positions
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.parts import check_processes, part_sizes

POSITIONS = 256
RELEASED = validate(compose_config(["train=released"])).train
STD = 0.0835  # of the released truncated normal


@pytest.mark.parametrize("group", [64, None])
def test_a_steps_masked_share_is_as_noisy_as_the_released_one(group: int | None) -> None:
    """32 ratios in a batch of 2,048; with one ratio for the whole batch the noise is 5.7 times as large."""
    recipe = replace(RELEASED, mask_group_size=group)
    groups = recipe.batch_size // recipe.mask_group
    assert (groups, RELEASED.mask_group_size) == (32 if group else 1, 64)
    uniforms = torch.rand(20_000, groups, generator=generator("steps"))
    shares = num_masked_positions(uniforms, POSITIONS, recipe).double() / POSITIONS
    assert shares.mean(1).std().item() == pytest.approx(STD / groups**0.5, rel=0.03)
    assert (shares.min().item(), shares.max().item()) == (180 / POSITIONS, 1)  # 180 = ceil(0.7 * 256)
    # of |N(0, 0.25)| below 0.3, the mean is 0.25 sqrt(2/pi) (1 - exp(-0.72)) / erf(1.2 / sqrt 2); rounding up adds 1/2
    assert shares.mean().item() == pytest.approx(1 - 0.1331 + 0.5 / POSITIONS, abs=0.002)


def test_counts_are_the_released_ratios_rounded_up() -> None:
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    ratios = truncnorm((0.7 - 1.0) / 0.25, 0, loc=1.0, scale=0.25).ppf(uniforms.double().numpy())
    expected = torch.from_numpy(POSITIONS * ratios).ceil().long()
    counts = num_masked_positions(uniforms, POSITIONS, RELEASED)
    assert (counts - expected).abs().max() <= 1
    assert (counts != expected).sum() < 10  # theirs are in float64: a ratio at a border may round to either side


@pytest.mark.parametrize(("uniform", "least", "masked"), [(0.0, 0.7, 12), (1.0, 0.7, 16), (0.0, 0.0, 1)])
def test_masking_leaves_nothing_out_and_masks_something(uniform: float, least: float, masked: int) -> None:
    recipe = replace(RECIPE, mask_ratio_min=least)
    assert num_masked_positions(torch.tensor(uniform), 16, recipe) == masked


def drawn(data: FreshTokens, recipe: TrainConfig, part: slice = slice(None)) -> Batch:
    return draw_batch(
        data, torch.arange(recipe.batch_size) % len(data), recipe, generator("batch"), random_model(), part
    )


def test_each_group_has_one_count_and_groups_differ(data: FreshTokens) -> None:
    counts = drawn(data, replace(RECIPE, batch_size=64, mask_group_size=8, mask_ratio_min=0.1)).num_masked
    assert torch.equal(counts, counts[::8].repeat_interleave(8))
    assert len(counts.unique()) > 1
    whole = drawn(data, replace(RECIPE, batch_size=64, mask_ratio_min=0.1))
    assert len(whole.num_masked.unique()) == 1


@settings(max_examples=50, derandomize=True)
@given(group=st.integers(1, 12), groups=st.integers(1, 8), world=st.integers(1, 12), accumulation=st.integers(1, 4))
def test_parts_cover_the_batch_and_cross_no_group(group: int, groups: int, world: int, accumulation: int) -> None:
    recipe = replace(RECIPE, batch_size=group * groups, mask_group_size=group)
    launcher = replace(LAUNCHER, accumulation=accumulation)
    sizes = [part_sizes(recipe, launcher, rank, world) for rank in range(world)]
    ends = torch.tensor([0, *(size for own in sizes for size in own)]).cumsum(0)
    assert ends[-1] == recipe.batch_size
    assert all(start // group == (end - 1) // group for start, end in pairwise(ends))
    assert set(range(0, recipe.batch_size, group)) <= set(ends.tolist())


@pytest.mark.parametrize(
    ("world", "fits"), [(1, True), (2, True), (3, False), (8, True), (16, True), (32, True), (5, False)]
)
def test_processes_that_do_not_divide_the_groups_are_refused(world: int, fits: bool) -> None:
    """Sharded processes gather weights together, so each must compute equally many parts."""
    recipe = replace(RECIPE, batch_size=64, mask_group_size=8)
    message = f"train.mask_group_size is 8, and {world} processes do not divide the 8 groups"
    if fits:
        check_processes(recipe, LAUNCHER, world)
    else:
        with pytest.raises(ConfigError, match=re.escape(message)):
            check_processes(recipe, LAUNCHER, world)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask_group_size": 5}, "mask_group_size is 5: must divide train.batch_size (8)"),
        ({"mask_group_size": 0}, "mask_group_size is 0: must be greater than 0"),
        ({"mask_ratio_mean": 0.5}, "mask_ratio_mean is 0.5: must be from train.mask_ratio_min (0.7) to 1"),
        ({"mask_ratio_mean": 1.5}, "mask_ratio_mean is 1.5: must be from train.mask_ratio_min (0.7) to 1"),
        ({"head_share": 0.0}, "head_share is 0.0: must be greater than 0"),
        ({"mask_ratio_std": 0.0}, "mask_ratio_std is 0.0: must be greater than 0"),
    ],
)
def test_recipes_that_would_mask_wrongly_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(RECIPE, **wrong)


def test_labels_are_dropped_at_their_rate(data: FreshTokens) -> None:
    recipe = replace(RECIPE, label_dropout=0.25)
    model = random_model()
    batches = [draw_batch(data, torch.arange(64), recipe, generator(step), model) for step in range(50)]
    labels = torch.cat([batch.labels for batch in batches])
    assert (labels == 3).float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("masked", "share", "predicted"), [(12, 1.0, 12), (12, 0.25, 3), (13, 0.25, 4), (1, 0.01, 1)])
def test_the_head_is_trained_on_a_share_of_the_masked_positions(
    data: FreshTokens, masked: int, share: float, predicted: int
) -> None:
    assert predicted_positions(masked, share) == predicted
    model, sizes = random_model(), []
    model.head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    batch = replace(drawn(data, RECIPE), num_masked=torch.full((8,), masked))
    batch_loss(model, data.quantizer, batch, share)
    assert sum(sizes) == 8 * predicted


def test_over_all_orders_half_of_four_positions_have_the_loss_and_gradient_of_all(data: FreshTokens) -> None:
    """The orders of the masked positions are equally likely, whatever the set of these positions is."""
    model, batch = random_model(), drawn(data, RECIPE)
    orders = [torch.cat([batch.order[:, list(first)], batch.order[:, 4:]], dim=1) for first in permutations(range(4))]
    masked = {"num_masked": torch.full((8,), 4)}

    def found(order: torch.Tensor, share: float) -> list[torch.Tensor]:
        model.zero_grad()
        loss = batch_loss(model, data.quantizer, replace(batch, order=order, **masked), share)
        loss.backward()
        return [loss.detach(), *(weight.grad.clone() for weight in model.parameters())]

    halves = [found(order, 0.5) for order in orders]
    assert torch.stack([half[0] for half in halves]).std() > 0.01  # each is another loss
    means = [torch.stack(each).mean(0) for each in zip(*halves, strict=True)]
    for mean, whole in zip(means, found(batch.order, 1.0), strict=True):
        torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-5)
