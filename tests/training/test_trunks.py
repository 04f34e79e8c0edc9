"""Models with every trunk are trained by the same loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.small_data import write_moments
from tests.support.small_model import MODEL, QUANTIZER, RECIPE
from tests.training.test_systems import trained
from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.base.errors import UserError
from tokenbridge.base.seeding import generator
from tokenbridge.config import ModelConfig
from tokenbridge.config.model import CAUSAL_TRUNKS, TRUNKS, Trunk
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.training.batches import batch_loss, draw_batch
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.trainer import build_model
from tokenbridge.training.validation import Validation


@pytest.fixture
def data(vae_latents: Tensor, tmp_path: Path) -> FreshTokens:
    return FreshTokens(write_moments(tmp_path / "moments", vae_latents), fit_quantizer(vae_latents, QUANTIZER))


def config_of(trunk: Trunk) -> ModelConfig:
    return replace(MODEL, trunk=trunk)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_step_reaches_every_parameter(trunk: Trunk, data: FreshTokens) -> None:
    config = config_of(trunk)
    model = build_model(config, data, data.quantizer)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = draw_batch(data, torch.arange(8), config.train, generator(1), model)
    assert (batch.num_masked.tolist() == [model.units] * 8) == model.causal
    batch_loss(model, data.quantizer, batch).backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad.any()}
    between_slots = [] if model.unit_slots > 1 else ["head.level_embedding", "q_norm", "k_norm"]
    missed = {name for name, _ in model.head.named_parameters("head") if any(part in name for part in between_slots)}
    assert {name for name, _ in model.named_parameters()} - reached == missed


def test_a_causal_trunk_learns_by_the_same_loop_and_bits(data: FreshTokens, tmp_path: Path) -> None:
    config = config_of("causal_random")
    first, second = (trained(tmp_path / name, config, data, epochs=5) for name in "ab")
    assert first.evaluations[-1]["validation_loss"] < first.history[0]["loss"]
    assert all(torch.equal(*pair) for pair in zip(first.model.parameters(), second.model.parameters(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("trunk", CAUSAL_TRUNKS)
def test_the_validation_loss_of_a_causal_trunk_is_that_of_every_position(trunk: Trunk, data: FreshTokens) -> None:
    model = build_model(config_of(trunk), data, data.quantizer).eval()
    validation = Validation(data, data.quantizer, SINGLE_PROCESS)
    total = 0.0
    for number in range(validation.batches):
        batch = validation.batch(number, slice(None), model)
        values, tokens = data.quantizer.decode(batch.tokens), data.quantizer.to_head_order(batch.tokens)
        total += float(model(values, tokens, batch.labels, batch.order, 16)) * len(batch.labels)
    assert validation.loss(model) == pytest.approx(total / validation.count, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": replace(RECIPE, head_share=0.5)},
            r"train\.head_share is 0\.5, but trunk=causal_raster learns every",
        ),
        ({"width": 33, "heads": 3}, "width is 33: must be even with trunk=causal_raster"),
    ],
)
def test_recipes_that_a_causal_trunk_does_not_follow_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(config_of("causal_raster"), **changes)


def test_a_causal_trunk_masks_every_position_whatever_the_recipe_says() -> None:
    recipe = config_of("causal_raster").train
    assert (recipe.mask_ratio_mean, recipe.mask_ratio_min) == (1.0, 1.0)
    assert config_of("masked").train == RECIPE
