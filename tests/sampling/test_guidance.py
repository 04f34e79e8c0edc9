"""Guidance whose unconditional half is computed at some steps only."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from tests.support.small_model import random_model
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import REVEAL_ORDERS, RevealOrder, SamplingSettings
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.sampling.guidance import Guidance, needed_until, refreshed
from tokenbridge.sampling.sampler import Draws, draw_rows, sample_tokens
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

LABELS = torch.tensor([0, 2])
EVERY_THIRD = SamplingSettings(8, 3.0, guidance_refresh=3)


def draws(images: int) -> Draws:
    return Draws.from_generators([generator(0, "sample", i) for i in range(images)], positions=16, numbers=4)


def test_the_first_guided_step_and_every_third_after_it_compute_both_halves() -> None:
    assert refreshed([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0], 3) == [False, True, False, False, True, False, False]
    assert refreshed([1.0, 2.0, 2.0], 1) == [False, True, True]


def test_a_step_with_both_halves_serves_all_steps_up_to_the_next() -> None:
    both, counts = [False, True, False, False, True, False], [11, 9, 7, 4, 2, 0]
    assert needed_until(both, counts, 3) == [11, 4, 7, 4, 0, 0]
    assert needed_until(both, counts, 1) == counts


@torch.no_grad()
def test_the_same_input_gives_the_same_features_from_the_kept_difference(model: TokenBridgeTransformer) -> None:
    """Nothing was revealed between the steps, so the difference of the first is that of the second."""
    random = torch.Generator().manual_seed(0)
    values, order = torch.randn(2, 16, 4, generator=random), torch.rand(2, 16, generator=random).argsort(1)
    visible, wanted = order[:, 12:], order[:, 4:12]
    guidance, plain = (Guidance(model, LABELS, refresh) for refresh in (2, 1))
    first = guidance.features(values, visible, wanted, 3.0, True, 5)
    assert torch.equal(first, plain.features(values, visible, wanted, 3.0, True, 0)[:, 5:])
    later = guidance.features(values, visible, wanted[:, :5], 2.0, False, 0)
    expected = plain.features(values, visible, wanted[:, :5], 2.0, True, 0)
    torch.testing.assert_close(later, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("both", [True, False])
def test_on_the_output_both_halves_are_left_for_the_head(model: TokenBridgeTransformer, both: bool) -> None:
    """Their mixture is what guidance on the features gives, also from the kept difference."""
    random = torch.Generator().manual_seed(0)
    values, order = torch.randn(2, 16, 4, generator=random), torch.rand(2, 16, generator=random).argsort(1)
    inputs = values, order[:, 12:], order[:, 4:12]
    mixed, halves = (Guidance(model, LABELS, 2, on_output) for on_output in (False, True))
    for guidance in (mixed, halves):
        guidance.features(*inputs, 3.0, True, 0)
    of_class, of_none = halves.features(*inputs, 3.0, both, 0).chunk(2, dim=-1)
    expected = mixed.features(*inputs, 3.0, both, 0)
    torch.testing.assert_close(torch.lerp(of_none, of_class, 3.0), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_on_the_output_tokens_have_the_distribution_of_the_mixed_logits() -> None:
    """Chi-square of the joint of two levels. Each factor is the softmax of l_0 + s (l_1 - l_0), after those so far."""
    model, count, scale = random_model(levels=3, dimensions=2), 40_000, torch.tensor(2.5)
    z = torch.randn(2, model.config.width, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(count, 2, generator=torch.Generator().manual_seed(1))
    drawn, _, _ = draw_rows(model, SamplingSettings(), z.flatten().expand(count, -1), uniforms, scale)
    joint = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    of_class, of_none = (model.head(half.expand(9, -1), joint) for half in z)
    factors = (of_none + scale * (of_class - of_none)).double().softmax(-1).gather(-1, joint[..., None])
    found = torch.bincount(drawn @ torch.tensor([3, 1]), minlength=9)
    expected = factors.prod(1)[:, 0]
    assert chisquare(found, count * expected / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_the_steps_between_compute_one_half_and_no_image_depends_on_its_batch(
    quantizer: DimensionwiseQuantizer, order: RevealOrder
) -> None:
    model, settings, rows = random_model(), replace(EVERY_THIRD, order=order), []
    model.encoder_norm.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    tokens = sample_tokens(model, quantizer, LABELS, draws(2), settings)
    assert rows == [4, 2, 2, 4, 2, 2, 4, 2]
    assert torch.equal(tokens[:1], sample_tokens(model, quantizer, LABELS[:1], draws(1), settings))
