"""Other tokens and heads keep what the sampler promises: seeds, batches, edits, saving, and refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.small_pipeline import build_pipeline
from tests.support.systems import SYSTEMS, random_system
from tokenbridge.base.errors import UserError
from tokenbridge.base.finite import NotFiniteError
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import GUIDED, SamplingSettings, Trunk
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.latents import Quantizer

SETTINGS = SamplingSettings(steps=4, guidance_scale=2.0)
ON_OUTPUT = replace(SETTINGS, guidance_on="output")
System = tuple[TokenBridgeTransformer, Quantizer]


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, vae_latents: Tensor) -> System:
    return random_system(request.param, vae_latents)


@pytest.fixture(params=["mixture", "diffusion", "flow", "bits"])
def at_once(request: pytest.FixtureRequest, vae_latents: Tensor) -> System:
    return random_system(request.param, vae_latents)


def draws_of(model: TokenBridgeTransformer, *indices: int) -> Draws:
    return Draws.from_generators([generator(0, "sample", i) for i in indices], 16, model.head.draw_numbers)


def test_an_image_depends_on_its_own_seed_alone(system: System) -> None:
    model, quantizer = system
    together = sample_tokens(model, quantizer, torch.tensor([0, 1, 2]), draws_of(model, 5, 6, 7), SETTINGS)
    alone = sample_tokens(model, quantizer, torch.tensor([1]), draws_of(model, 6), SETTINGS)
    other = sample_tokens(model, quantizer, torch.tensor([1]), draws_of(model, 8), SETTINGS)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone.float(), other.float())


@pytest.mark.parametrize("trunk", ["masked", "causal_random"])
@pytest.mark.parametrize("name", ["levels", "codebook", "diffusion", "flow", "bits"])
def test_guidance_on_the_output_is_another_one_and_keeps_images_apart(
    name: str, trunk: Trunk, vae_latents: Tensor
) -> None:
    model, quantizer = random_system(name, vae_latents, trunk)
    labels, draws = torch.tensor([0, 1, 2]), draws_of(model, 5, 6, 7)
    together = sample_tokens(model, quantizer, labels, draws, ON_OUTPUT)
    alone = sample_tokens(model, quantizer, labels[1:2], draws_of(model, 6), ON_OUTPUT)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    strong = replace(ON_OUTPUT, guidance_scale=20.0 if quantizer.classes is None else 200.0)  # weights are random
    kinds = [replace(strong, guidance_on=each) for each in GUIDED]
    on_features, on_output = (sample_tokens(model, quantizer, labels, draws, each).float() for each in kinds)
    assert not torch.allclose(on_features, on_output)


def test_densities_cannot_be_mixed(vae_latents: Tensor) -> None:
    model, quantizer = random_system("mixture", vae_latents)
    with pytest.raises(UserError, match="cannot mix the outputs of this model's mixture head"):
        sample_tokens(model, quantizer, torch.tensor([0]), draws_of(model, 1), ON_OUTPUT)


def test_kept_positions_stay_exactly(system: System) -> None:
    model, quantizer = system
    given = sample_tokens(model, quantizer, torch.tensor([0]), draws_of(model, 1), SETTINGS)
    keep = torch.arange(16) < 6
    edited = sample_tokens(model, quantizer, torch.tensor([0]), draws_of(model, 2), SETTINGS, given=given, keep=keep)
    assert torch.equal(edited[:, :6], given[:, :6])
    assert not torch.equal(edited[:, 6:], given[:, 6:])


def test_a_pipeline_survives_saving(system: System, tmp_path: Path) -> None:
    pipeline = build_pipeline(*system)
    pipeline.save_pretrained(tmp_path)
    again = TokenBridgePipeline.from_pretrained(tmp_path)
    images = [each([2], 4, generator=torch.Generator().manual_seed(0)).images[0] for each in (pipeline, again)]
    assert np.array_equal(*map(np.asarray, images))


def test_parts_of_other_tokens_are_refused(vae_latents: Tensor, tmp_path: Path) -> None:
    levels_of_codebook, _ = random_system("codebook", vae_latents)
    build_pipeline(levels_of_codebook, random_system("product", vae_latents)[1]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its parts differ in slots of a token"):
        TokenBridgePipeline.from_pretrained(tmp_path)


def test_temperature_0_gives_the_same_tokens_for_every_seed(vae_latents: Tensor) -> None:
    """The mixture's component is still drawn, so that one is left out; the order of positions is the same."""
    for name in ("diffusion", "flow", "bits"):
        model, quantizer = random_system(name, vae_latents)
        settings = replace(SETTINGS, temperature=0.0, order="raster")
        first, second = (
            sample_tokens(model, quantizer, torch.tensor([0]), draws_of(model, seed), settings) for seed in (1, 2)
        )
        if name == "diffusion":  # its noise at the start has no temperature
            assert not torch.equal(first, second)
        else:
            torch.testing.assert_close(first, second)


@pytest.mark.parametrize("changes", [{"top_p": 0.9}, {"order": "confidence"}])
def test_what_needs_probabilities_is_refused(at_once: System, changes: dict[str, object]) -> None:
    model, quantizer = at_once
    with pytest.raises(UserError, match="gives no probabilities of levels"):
        sample_tokens(model, quantizer, torch.tensor([0]), draws_of(model, 1), replace(SETTINGS, **changes))


def test_latents_that_are_not_finite_stop_the_sampling(at_once: System) -> None:
    model, quantizer = at_once
    with torch.no_grad():
        model.decoder_norm.bias.fill_(torch.nan)
    with pytest.raises(NotFiniteError):
        sample_tokens(model, quantizer, torch.tensor([0]), draws_of(model, 1), SETTINGS)
