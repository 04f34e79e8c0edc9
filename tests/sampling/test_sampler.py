"""Sampling: schedules, and that an image depends on its own generator alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.checkout import CHECKOUT
from tests.support.small_model import random_model, small_model
from tokenbridge.base.checks import FP32
from tokenbridge.base.device import widest_float
from tokenbridge.base.seeding import generator
from tokenbridge.base.slices import VALUES
from tokenbridge.config.model import GUIDANCE_SCHEDULES, REVEAL_ORDERS, RevealOrder, SamplingSettings, Trunk
from tokenbridge.config.params import compose_config, validate
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.model.schedule import masked_counts
from tokenbridge.model.uniforms import GOLDEN_RATIO
from tokenbridge.ops.planning.sizes import meta_model, step_inputs
from tokenbridge.ops.planning.steps import GpuNumerics, HeldBytes
from tokenbridge.sampling import sampler as sampling
from tokenbridge.sampling.sampler import (
    Draws,
    choose_levels,
    guidance_at,
    positions_at_once,
    sample_tokens,
)
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

Sample = Callable[..., torch.Tensor]
SETTINGS = SamplingSettings(steps=6, guidance_scale=2.0)


@pytest.fixture
def sample(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> Sample:
    """``sample_tokens`` of the small model and its quantizer."""
    return partial(sample_tokens, model, quantizer)


def draw(indices: list[int]) -> Draws:
    return Draws.from_generators([generator(0, "sample", i) for i in indices], positions=16, numbers=4)


def test_guidance_schedules() -> None:
    linear, cosine, constant = (SamplingSettings(4, 3.0, schedule) for schedule in ("linear", "cosine", "constant"))
    assert guidance_at(linear, 16, 16, 16) == guidance_at(cosine, 16, 16, 16) == 1.0
    assert guidance_at(linear, 16, 12, 8) == 2.0
    assert guidance_at(cosine, 16, 12, 8) == pytest.approx(2.0)
    assert guidance_at(cosine, 16, 16, 12) == pytest.approx(1 + 1 - math.cos(math.pi / 4))
    assert guidance_at(linear, 16, 1, 0) == 1 + 2 * 15 / 16  # as released: never quite the scale
    assert guidance_at(cosine, 16, 1, 0) == pytest.approx(1 + 1 - math.cos(math.pi * 15 / 16))
    assert guidance_at(constant, 16, 16, 15) == guidance_at(constant, 16, 1, 0) == 3.0


@pytest.mark.parametrize("schedule", GUIDANCE_SCHEDULES)
def test_guidance_acts_only_in_its_interval(schedule: str) -> None:
    settings = SamplingSettings(16, 3.0, schedule, guidance_interval=(0.25, 0.75))
    acts = [guidance_at(settings, 16, before, before - 1) > 1 for before in range(16, 0, -1)]
    assert acts == [False] * 4 + [True] * 8 + [False] * 4


@pytest.mark.parametrize(("positions", "steps"), [(4, 4), (16, 16), (256, 16)])
def test_steps_by_default(positions: int, steps: int) -> None:
    assert SamplingSettings().steps_for("masked", positions) == steps


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "must be greater than 0"),
        ({"steps": 4, "guidance_scale": 0.5}, "guidance_scale"),
        ({"steps": 4, "guidance_schedule": "cosine?"}, "linear"),
        ({"steps": 4, "temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "^top_p is 0: must be greater than 0$"),
        ({"order": "spiral"}, "'random', 'raster', 'confidence' or 'halton'"),
        ({"guidance_interval": (0.5, 0.5)}, "from < to"),
        ({"guidance_interval": (0.5,)}, "from < to"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**wrong)  # type: ignore[arg-type]


def test_levels_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    uniforms = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 1.0, 2.0):
        levels = choose_levels(logits.expand(len(uniforms), -1), uniforms, temperature)
        frequencies = levels.bincount(minlength=4) / len(levels)
        torch.testing.assert_close(frequencies, (logits / temperature).softmax(0), atol=5e-3, rtol=0)


@given(uniform=st.floats(0, 1, exclude_max=True, width=32))
def test_a_level_of_no_probability_is_never_drawn(uniform: float) -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert choose_levels(logits, torch.tensor([uniform]), 1.0).item() in (1, 3)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert choose_levels(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.999]), 0).item() == 1


def test_top_p_leaves_out_unlikely_levels() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.05, 0.35])
    uniforms = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    for top_p, kept in ((0.4, [1]), (0.7, [1, 3]), (0.9, [0, 1, 3]), (1.0, [0, 1, 2, 3])):
        levels = choose_levels(probabilities.log().expand(len(uniforms), -1), uniforms, 1.0, top_p)
        expected = torch.zeros(4)
        expected[kept] = probabilities[kept] / probabilities[kept].sum()
        torch.testing.assert_close(levels.bincount(minlength=4) / len(levels), expected, atol=1e-2, rtol=0)
        assert set(levels.tolist()) == set(kept)


def test_top_p_comes_after_temperature() -> None:
    logits = torch.tensor([0.6, 0.4]).log().expand(1000, -1)
    uniforms = torch.arange(1000) / 1000
    assert choose_levels(logits, uniforms, 1.0, 0.65).unique().tolist() == [0, 1]
    assert choose_levels(logits, uniforms, 0.5, 0.65).unique().tolist() == [0]  # 0.69 when sharpened


@pytest.mark.parametrize("order", REVEAL_ORDERS)
@pytest.mark.parametrize("schedule", GUIDANCE_SCHEDULES)
def test_an_image_does_not_depend_on_its_batch(sample: Sample, order: str, schedule: str) -> None:
    settings = SamplingSettings(6, 2.0, schedule, (0.1, 0.8), top_p=0.9, order=order)
    labels = torch.tensor([0, 1, 2, 0, 1])
    together = sample(labels, draw([0, 1, 2, 3, 4]), settings)
    for i in range(5):
        alone = sample(labels[i : i + 1], draw([i]), settings)
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[0], together[3])  # of the same class


@pytest.mark.parametrize(("head", "group"), [("parallel", 1), ("autoregressive", 2), ("parallel", 4)])
def test_every_head_is_sampled(
    quantizer: DimensionwiseQuantizer, head: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = random_model(head=head, head_group=group)
    labels = torch.tensor([0, 1, 2])
    tokens = sample_tokens(other, quantizer, labels, draw([0, 1, 2]), SETTINGS)
    assert tokens.shape == (3, 16, 4)
    assert tokens.unique().tolist() == list(range(8))  # of 8 levels
    monkeypatch.setattr(sampling, "MAX_BYTES", 1)
    assert torch.equal(tokens, sample_tokens(other, quantizer, labels, draw([0, 1, 2]), SETTINGS))


@pytest.mark.parametrize(
    ("sizes", "least"),
    [
        ({}, 10_000),  # far more than a batch of small models has
        ({"dimensions": 16, "levels": 64, "head_width": 1024, "head_depth": 4, "head_heads": 8}, 800),  # L
        ({"levels": 256, "head_group": 2}, 50),  # 65,536 classes
        ({"levels": 256, "head_group": 2, "head": "parallel"}, 50),
    ],
)
@torch.no_grad()
def test_the_heads_memory_is_bounded_whatever_is_drawn_at_once(sizes: dict[str, object], least: int) -> None:
    with torch.device("meta"):
        model = small_model(**sizes).eval()
        head, rows = model.head, positions_at_once(model.head)
        assert rows >= least
        held, uniforms = HeldBytes(), torch.rand(rows, head.slots)
        with held:
            head.sample(torch.zeros(rows, 32), lambda logits, i: choose_levels(logits, uniforms[:, i], 1.0, 0.9))
    assert 0.3 * sampling.MAX_BYTES < held.most < 1.15 * sampling.MAX_BYTES


@pytest.mark.parametrize("device", ["cpu", "mps"])
@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_no_float64_on_apples_gpus(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, device: str, order: RevealOrder
) -> None:
    """They refuse it. The CPU computes here in the types of the device."""
    for module in ("tokenbridge.sampling.sampler", "tokenbridge.model.uniforms"):
        monkeypatch.setattr(f"{module}.widest_float", lambda _: widest_float(torch.device(device)))
    with Types() as types:
        sample(LABELS, draw([0, 1]), SamplingSettings(2, 3.0, top_p=0.9, order=order))
    assert (torch.float64 in types.made) is (device == "cpu")


class Types(TorchDispatchMode):
    """The types of all tensors that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.made |= {leaf.dtype for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)}
        return made


def test_slices_of_images_change_no_token(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, draws = torch.tensor([0, 1, 2]), draw([0, 1, 2])
    tokens = sample(labels, draws, SETTINGS)
    monkeypatch.setattr("tokenbridge.base.slices.VALUES", 1)
    assert torch.equal(tokens, sample(labels, draws, SETTINGS))


@pytest.mark.parametrize(("trunk", "depth"), [("masked", 1), ("causal_random", 16)])
def test_many_images_of_a_large_model_are_drawn_within_the_memory(
    trunk: Trunk, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 images of L at once would take 9 GiB in encoder and decoder, or 39 in keys and values of a causal trunk."""
    monkeypatch.setattr("tokenbridge.sampling.sampler.check_finite", lambda *_: None)  # meta tensors have no values
    config = validate(compose_config(["experiment=imagenet_l"], CHECKOUT / "conf"))
    sizes = {"encoder_depth": depth, "decoder_depth": depth, "head_width": 8, "head_depth": 1}
    model = meta_model(config, replace(config.models["large"], trunk=trunk, **sizes)).eval()
    values, tokens, labels, order = step_inputs(model, 250)
    quantizer = Mock(decode=lambda of: values[: len(of)], from_head_order=lambda of: of, slots=tokens.shape[-1])
    with GpuNumerics(FP32), HeldBytes() as held:
        sample_tokens(model, quantizer, labels, Draws(order, values), SamplingSettings(1, 2.0))
    assert 0.5 * 4 * VALUES < held.most < 1.1 * 4 * VALUES


def test_guidance_of_one_needs_no_unconditional_half(model: TokenBridgeTransformer, sample: Sample) -> None:
    labels = torch.tensor([1, 2])
    plain = sample(labels, draw([0, 1]), SamplingSettings(6, 1.0))
    with torch.no_grad():
        model.no_class.normal_(generator=torch.Generator().manual_seed(0)).mul_(30)
    assert torch.equal(plain, sample(labels, draw([0, 1]), SamplingSettings(6, 1.0)))
    guided = sample(labels, draw([0, 1]), SamplingSettings(6, 9.0))
    assert not torch.equal(plain, guided)


LABELS = torch.tensor([0, 2])
FIRST = masked_counts(16, 2)[0]  # positions still masked after the first of two steps


def two_steps(order: str) -> SamplingSettings:
    return SamplingSettings(2, 1.0, order=order)


def test_raster_reveals_row_by_row(sample: Sample) -> None:
    draws = draw([0, 1])
    tokens = sample(LABELS, draws, two_steps("raster"))
    shuffled = Draws(draws.order.flip(1), draws.uniforms)
    assert torch.equal(tokens, sample(LABELS, shuffled, two_steps("raster")))
    top = torch.arange(16) < 16 - FIRST
    again = sample(LABELS, draws, replace(two_steps("raster"), steps=1), given=tokens, keep=top)
    assert torch.equal(again, tokens)


@torch.no_grad()
def test_confidence_keeps_the_surest_and_draws_the_others_afresh(
    model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer, sample: Sample
) -> None:
    labels, draws = LABELS[:1], draw([0])
    tokens = sample(labels, draws, two_steps("confidence"))
    # the first step by hand: everything is drawn at once, in one step of any order
    first = sample(labels, draws, SamplingSettings(1, 1.0))
    z = model.features(torch.zeros(1, 16, 4), labels, torch.empty(1, 0, dtype=torch.long))[0]
    chosen = quantizer.to_head_order(first)[0]
    scores = model.head(z, chosen).log_softmax(-1).gather(-1, chosen[..., None])[..., 0].mean(-1)
    keep = torch.zeros(16, dtype=torch.bool)
    keep[scores.topk(16 - FIRST).indices] = True
    assert torch.equal(tokens[0, keep], first[0, keep])
    # the second step: the rest, with other uniforms
    fresh = Draws(draws.order, (draws.uniforms.double() + GOLDEN_RATIO) % 1)
    rest = sample(labels, fresh, SamplingSettings(1, 1.0), given=first, keep=keep)
    assert torch.equal(tokens, rest)


KEEP = torch.arange(16) % 4 < 2  # the left half


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_given_tokens_are_kept_exactly(sample: Sample, order: str) -> None:
    given = torch.randint(8, (2, 16, 4), generator=generator(0, "given"))
    settings = SamplingSettings(4, order=order)
    tokens = sample(LABELS, draw([0, 1]), settings, given=given, keep=KEEP)
    assert torch.equal(tokens[:, KEEP], given[:, KEEP])
    assert not torch.equal(tokens[:, ~KEEP], given[:, ~KEEP])
    blank = torch.where(KEEP[:, None], given, 0)  # what is not kept is not looked at
    assert torch.equal(tokens, sample(LABELS, draw([0, 1]), settings, given=blank, keep=KEEP))


def test_given_tokens_are_seen_from_the_first_step_on(sample: Sample) -> None:
    low, high = (
        sample(LABELS, draw([0, 1]), SamplingSettings(1), given=torch.full((2, 16, 4), level), keep=KEEP)
        for level in (0, 7)
    )
    assert not torch.equal(low[:, ~KEEP], high[:, ~KEEP])


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_keeping_nothing_is_plain_sampling(sample: Sample, order: str) -> None:
    settings = replace(SETTINGS, order=order)
    plain = sample(LABELS, draw([0, 1]), settings)
    given, nothing = torch.zeros_like(plain), torch.zeros(16, dtype=torch.bool)
    edited = sample(LABELS, draw([0, 1]), settings, given=given, keep=nothing)
    assert torch.equal(plain, edited)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"settings": SamplingSettings(9)}, "9 steps for 8 positions: use at most 8"),
        ({"keep": torch.ones(16, dtype=torch.bool)}, "leave at least one"),
        ({"keep": None}, "both or neither"),
        ({"given": torch.zeros(1, 16, 4, dtype=torch.long)}, r"give tokens of shape \[2, 16, 4\]"),
    ],
)
def test_edits_that_cannot_be_are_refused(sample: Sample, wrong: dict[str, object], message: str) -> None:
    right = {"settings": SETTINGS, "given": torch.zeros(2, 16, 4, dtype=torch.long), "keep": KEEP}
    with pytest.raises(ValueError, match=message):
        sample(LABELS, draw([0, 1]), **{**right, **wrong})
