"""Sampling of single numbers keeps what the sampler promises: seeds, batches, edits, guidance, saving, refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.small_pipeline import build_pipeline
from tests.support.systems import random_system
from tokenbridge.base.errors import UserError
from tokenbridge.base.loading import LoadError
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import SamplingSettings
from tokenbridge.model import AutoregressiveModel
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.latents import Quantizer

System = tuple[AutoregressiveModel, Quantizer]
LABELS = torch.tensor([0, 1, 2])
SETTINGS = SamplingSettings(steps=24, guidance_scale=2.0)  # more steps than there are positions


@pytest.fixture
def system(vae_latents: Tensor) -> System:
    return random_system("levels", vae_latents, "elements")


def draws_of(model: AutoregressiveModel, *indices: int) -> Draws:
    return Draws.from_generators([generator(0, "sample", i) for i in indices], model.units, model.head.draw_numbers)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"order": "confidence"},
        {"guidance_refresh": 2},
        {"guidance_interval": (0.2, 0.8)},
        {"top_p": 0.9},
        {"guidance_on": "output", "guidance_refresh": 2},
    ],
)
@pytest.mark.parametrize("name", ["levels", "entropy_coded", "mixture", "diffusion", "flow"])
def test_an_image_depends_on_its_own_seed_alone(name: str, change: dict[str, object], vae_latents: Tensor) -> None:
    model, quantizer = random_system(name, vae_latents, "elements")
    settings = replace(SETTINGS, **change)
    needs_levels = settings.order == "confidence" or settings.top_p < 1
    densities = name == "mixture" and settings.guidance_on == "output"
    if densities or (needs_levels and name not in {"levels", "entropy_coded"}):
        with pytest.raises(UserError, match=f"this model's {model.config.head} head"):
            sample_tokens(model, quantizer, LABELS, draws_of(model, 5, 6, 7), settings)
        return
    together = sample_tokens(model, quantizer, LABELS, draws_of(model, 5, 6, 7), settings)
    alone = sample_tokens(model, quantizer, LABELS[1:2], draws_of(model, 6), settings)
    other = sample_tokens(model, quantizer, LABELS[1:2], draws_of(model, 8), settings)
    assert together.shape == (3, 16, 4)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone.float(), other.float())


def test_single_dimensions_can_be_kept(system: System) -> None:
    keep = torch.arange(64) % 4 < 2  # half of each token
    low, high = (
        sample_tokens(
            *system, LABELS, draws_of(system[0], 5, 6, 7), SETTINGS, given=torch.full((3, 16, 4), level), keep=keep
        )
        for level in (0, 7)
    )
    assert (low[..., :2] == 0).all() and (high[..., :2] == 7).all()
    assert not torch.equal(low[..., 2:], high[..., 2:])


def test_an_edit_keeps_whole_positions(system: System) -> None:
    pipeline = build_pipeline(*system)
    keep = torch.arange(16).view(4, 4) % 3 == 0
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    given, seen = pipeline.encode_images(images), []
    pipeline.decode_tokens = lambda tokens: seen.append(tokens) or images
    pipeline.edit(images, keep, LABELS, num_inference_steps=24)
    kept = keep.flatten()
    assert torch.equal(seen[0][:, kept], given[:, kept])
    assert not torch.equal(seen[0][:, ~kept], given[:, ~kept])


@pytest.mark.parametrize("order", ["raster", "halton"])
def test_orders_of_positions_are_refused(system: System, order: str) -> None:
    with pytest.raises(UserError, match=f"order is {order}, an order of positions, but a model with trunk=elements"):
        sample_tokens(*system, LABELS, draws_of(system[0], 5, 6, 7), replace(SETTINGS, order=order))


def test_a_pipeline_survives_saving_but_not_another_quantizer(system: System, tmp_path: Path) -> None:
    pipeline = build_pipeline(*system)
    pipeline.save_pretrained(tmp_path)
    again = TokenBridgePipeline.from_pretrained(tmp_path)
    images = [each([2], 24, generator=torch.Generator().manual_seed(0)).images[0] for each in (pipeline, again)]
    assert np.array_equal(*map(np.asarray, images))
    system[1].dimension_order = torch.tensor([1, 0, 2, 3])
    system[1].save_pretrained(tmp_path / "quantizer")
    with pytest.raises(LoadError, match="needs dimensions in natural order"):
        TokenBridgePipeline.from_pretrained(tmp_path)
