"""Sampling from causal trunks keeps what the sampler promises: seeds, batches, edits, guidance, saving, refusals."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.small_model import SHAPE
from tests.support.small_pipeline import build_pipeline
from tests.support.systems import SYSTEMS, random_system
from tokenbridge.base.errors import UserError
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import REVEAL_ORDERS, RevealOrder, SamplingSettings, Trunk
from tokenbridge.model import AutoregressiveModel
from tokenbridge.sampling.guidance import Guidance
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.latents import Quantizer

System = tuple[AutoregressiveModel, Quantizer]
Sample = Callable[..., Tensor]
LABELS = torch.tensor([0, 1, 2])
RANDOM = SamplingSettings(steps=6, guidance_scale=2.0)
RASTER = SamplingSettings(steps=16, guidance_scale=2.0, order="raster")
SETTINGS: dict[Trunk, SamplingSettings] = {"causal_random": RANDOM, "causal_raster": RASTER}
KEEP = torch.arange(16) < 6


@pytest.fixture
def random_trunk(vae_latents: Tensor) -> System:
    return random_system("levels", vae_latents, "causal_random")


@pytest.fixture
def raster_trunk(vae_latents: Tensor) -> System:
    return random_system("levels", vae_latents, "causal_raster")


def draws_of(model: AutoregressiveModel, *indices: int) -> Draws:
    return Draws.from_generators([generator(0, "sample", i) for i in indices], 16, model.head.draw_numbers)


@pytest.mark.parametrize("trunk", SETTINGS)
@pytest.mark.parametrize("name", ["levels", *SYSTEMS])
def test_every_head_is_drawn_and_an_image_depends_on_its_own_seed_alone(
    name: str, trunk: Trunk, vae_latents: Tensor
) -> None:
    model, quantizer = random_system(name, vae_latents, trunk)
    together = sample_tokens(model, quantizer, LABELS, draws_of(model, 5, 6, 7), SETTINGS[trunk])
    alone = sample_tokens(model, quantizer, LABELS[1:2], draws_of(model, 6), SETTINGS[trunk])
    other = sample_tokens(model, quantizer, LABELS[1:2], draws_of(model, 8), SETTINGS[trunk])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone.float(), other.float())


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_every_order_is_drawn_whatever_is_drawn_beside_it(random_trunk: System, order: RevealOrder) -> None:
    model, _ = random_trunk
    settings = replace(RANDOM, order=order, guidance_interval=(0.2, 0.8))
    together = sample_tokens(*random_trunk, LABELS, draws_of(model, 5, 6, 7), settings)
    assert torch.equal(together[1:2], sample_tokens(*random_trunk, LABELS[1:2], draws_of(model, 6), settings))


def test_images_that_do_not_fit_into_the_memory_are_drawn_one_after_the_other(
    random_trunk: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = partial(sample_tokens, *random_trunk, LABELS, draws_of(random_trunk[0], 5, 6, 7), RANDOM)
    tokens = draw()
    monkeypatch.setattr("tokenbridge.base.slices.VALUES", 1)
    steps: list[tuple[int, int]] = []
    assert torch.equal(tokens, draw(on_step=lambda *step: steps.append(step)))
    assert steps == [(done + 1, 18) for done in range(18)]  # six steps of three images


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_guided_features_of_a_cache_are_those_of_both_halves_alone(random_trunk: System, count: int) -> None:
    model, _ = random_trunk
    values = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0))
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(1)).argsort(dim=1)
    guidance = Guidance(model, LABELS, 1)
    for known in range(0, 9, count):
        read, wanted = order[:, :known], order[:, known : known + count]
        guided = guidance.features(values, read, wanted, 3.0, True, 0)
        conditional, unconditional = (
            model.reader()(values, labels, read, wanted) for labels in (LABELS, torch.full((3,), SHAPE["num_classes"]))
        )
        expected = unconditional + 3.0 * (conditional - unconditional)
        torch.testing.assert_close(guided, expected, rtol=0, atol=5e-5)  # three times a difference of two


def test_both_halves_are_read_at_every_step_if_one_is_guided(random_trunk: System) -> None:
    model, rows = random_trunk[0], []
    model.decoder_norm.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    draw = partial(sample_tokens, *random_trunk, LABELS, draws_of(model, 5, 6, 7))
    draw(replace(RANDOM, guidance_interval=(0.5, 0.8)))
    draw(replace(RANDOM, guidance_scale=1.0))
    assert rows == [6] * 6 + [3] * 6


@pytest.mark.parametrize("trunk", SETTINGS)
def test_kept_positions_stay_exactly_and_are_seen(trunk: Trunk, vae_latents: Tensor) -> None:
    model, quantizer = random_system("levels", vae_latents, trunk)
    settings = replace(SETTINGS[trunk], steps=10)
    low, high = (
        sample_tokens(
            model, quantizer, LABELS, draws_of(model, 5, 6, 7), settings, given=torch.full((3, 16, 4), level), keep=KEEP
        )
        for level in (0, 7)
    )
    assert (low[:, KEEP] == 0).all() and (high[:, KEEP] == 7).all()
    assert not torch.equal(low[:, ~KEEP], high[:, ~KEEP])


@pytest.mark.parametrize("trunk", SETTINGS)
def test_what_was_drawn_is_drawn_again_after_its_own_beginning(trunk: Trunk, vae_latents: Tensor) -> None:
    """Kept positions that one pass reads are the same as those that steps read; without guidance, which counts them."""
    model, quantizer = random_system("levels", vae_latents, trunk)
    settings = replace(SETTINGS[trunk], steps=16, order="raster", guidance_scale=1.0)
    draw = partial(sample_tokens, model, quantizer, LABELS, draws_of(model, 5, 6, 7))
    tokens = draw(settings)
    assert torch.equal(draw(replace(settings, steps=10), given=tokens, keep=KEEP), tokens)


def test_a_model_of_random_orders_draws_in_raster_order_what_a_raster_model_draws(
    random_trunk: System, raster_trunk: System
) -> None:
    raster_trunk[0].load_state_dict(random_trunk[0].state_dict())
    first, second = (
        sample_tokens(*each, LABELS, draws_of(each[0], 5, 6, 7), RASTER) for each in (random_trunk, raster_trunk)
    )
    assert torch.equal(first, second)


def test_a_raster_model_is_drawn_in_its_own_order_and_in_every_step_that_it_needs(raster_trunk: System) -> None:
    draws = draws_of(raster_trunk[0], 5, 6, 7)
    unset = sample_tokens(*raster_trunk, LABELS, draws, SamplingSettings(guidance_scale=2.0))
    assert torch.equal(unset, sample_tokens(*raster_trunk, LABELS, draws, RASTER))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "random"}, "order is random, but a model with trunk=causal_raster knows one order alone"),
        ({"steps": 8}, "steps is 8, but a model with trunk=causal_raster predicts the next position alone"),
        ({"guidance_refresh": 2}, "guidance_refresh is 2, but a model with trunk=causal_raster"),
    ],
)
def test_what_a_raster_model_cannot_do_is_refused(
    raster_trunk: System, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sample_tokens(*raster_trunk, LABELS, draws_of(raster_trunk[0], 5, 6, 7), replace(RASTER, **changes))


def test_a_raster_model_keeps_only_a_beginning(raster_trunk: System) -> None:
    given, keep = torch.zeros(3, 16, 4, dtype=torch.long), torch.arange(16) % 4 < 2
    with pytest.raises(UserError, match="keep has gaps, but a model with trunk=causal_raster draws what comes after"):
        sample_tokens(
            *raster_trunk, LABELS, draws_of(raster_trunk[0], 5, 6, 7), replace(RASTER, steps=8), given=given, keep=keep
        )


@pytest.mark.parametrize("trunk", SETTINGS)
def test_a_pipeline_survives_saving(trunk: Trunk, vae_latents: Tensor, tmp_path: Path) -> None:
    pipeline = build_pipeline(*random_system("levels", vae_latents, trunk))
    pipeline.save_pretrained(tmp_path)
    again = TokenBridgePipeline.from_pretrained(tmp_path)
    assert type(again.transformer) is type(pipeline.transformer)
    settings = SETTINGS[trunk]
    images = [
        each([2], settings.steps, order=settings.order, generator=torch.Generator().manual_seed(0)).images[0]
        for each in (pipeline, again)
    ]
    assert np.array_equal(*map(np.asarray, images))
