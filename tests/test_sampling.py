"""Sampling: schedules, and that an image depends on its own generator alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.sampling import Draws, SamplingSettings, choose_levels, guidance_at, masked_counts, sample_tokens
from tokenbridge.seeding import generator

SETTINGS = SamplingSettings(steps=6, guidance_scale=2.0)


def draw(indices: list[int]) -> Draws:
    return Draws.from_generators([generator(0, "sample", i) for i in indices], positions=16, dimensions=4)


@given(positions=st.integers(1, 300), data=st.data())
def test_every_step_reveals_and_the_last_reveals_all(positions: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, positions))
    counts = masked_counts(positions, steps)
    assert len(counts) == steps
    assert counts[-1] == 0
    assert all(after < before for before, after in zip([positions, *counts], counts, strict=False))


def test_the_cosine_reveals_few_at_first() -> None:
    assert masked_counts(256, 4) == [236, 181, 97, 0]


def test_more_steps_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 16 steps"):
        masked_counts(16, 17)


def test_guidance_schedules() -> None:
    linear, constant = SamplingSettings(4, 3.0, "linear"), SamplingSettings(4, 3.0, "constant")
    assert guidance_at(linear, 16, 16) == 1.0
    assert guidance_at(linear, 16, 8) == 2.0
    assert guidance_at(linear, 16, 0) == 1 + 2 * 15 / 16  # as released: never quite the scale
    assert guidance_at(constant, 16, 16) == guidance_at(constant, 16, 0) == 3.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"steps": 4, "guidance_scale": 0.5}, "guidance_scale"),
        ({"steps": 4, "guidance_schedule": "cosine?"}, "linear"),
        ({"steps": 4, "temperature": -1}, "negative"),
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


def test_an_image_does_not_depend_on_its_batch(
    model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer
) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1])
    together = sample_tokens(model, quantizer, labels, draw([0, 1, 2, 3, 4]), SETTINGS)
    for i in range(5):
        alone = sample_tokens(model, quantizer, labels[i : i + 1], draw([i]), SETTINGS)
        assert torch.equal(alone[0], together[i])


def test_same_generators_same_tokens_and_others_differ(
    model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer
) -> None:
    labels = torch.zeros(2, dtype=torch.long)
    first, second = (sample_tokens(model, quantizer, labels, draw([0, 1]), SETTINGS) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_guidance_of_one_needs_no_unconditional_half(
    model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer
) -> None:
    labels = torch.tensor([1, 2])
    plain = sample_tokens(model, quantizer, labels, draw([0, 1]), SamplingSettings(6, 1.0))
    with torch.no_grad():
        model.no_class.normal_(generator=torch.Generator().manual_seed(0)).mul_(30)
    assert torch.equal(plain, sample_tokens(model, quantizer, labels, draw([0, 1]), SamplingSettings(6, 1.0)))
    guided = sample_tokens(model, quantizer, labels, draw([0, 1]), SamplingSettings(6, 9.0))
    assert not torch.equal(plain, guided)


def test_progress_is_told(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> None:
    steps: list[tuple[int, int]] = []
    sample_tokens(
        model, quantizer, torch.tensor([0]), draw([0]), SETTINGS, lambda done, total: steps.append((done, total))
    )
    assert steps == [(i, 6) for i in range(1, 7)]
