"""Other tokens and heads are trained by the same loop, with the same promises."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.small_data import write_moments
from tests.support.small_model import LAUNCHER, RECIPE, Silent
from tests.support.systems import SYSTEMS
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes
from tokenbridge.base.seeding import generator
from tokenbridge.config import ModelConfig
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.training.batches import draw_batch
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.trainer import Trained, build_model, train
from tokenbridge.training.validation import Validation

SELDOM = replace(LAUNCHER, checkpoint_seconds=60)


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, vae_latents: Tensor, tmp_path: Path) -> tuple[ModelConfig, FreshTokens]:
    quantizer, model = SYSTEMS[request.param]
    return model, FreshTokens(write_moments(tmp_path / "moments", vae_latents), fit_quantizer(vae_latents, quantizer))


def trained(folder: Path, model: ModelConfig, data: FreshTokens, **recipe: object) -> Trained:
    folder.mkdir()
    config = replace(model, train=replace(RECIPE, **recipe))
    quantizer, device = data.quantizer, torch.device("cpu")
    return train(config, data, data, quantizer, folder=folder, launcher=SELDOM, tracker=Silent(), device=device)


@pytest.mark.pipeline  # for its time alone
def test_it_learns_and_the_same_seed_gives_the_same_bits(
    system: tuple[ModelConfig, FreshTokens], tmp_path: Path
) -> None:
    first, second = (trained(tmp_path / name, *system, epochs=25) for name in ("first", "second"))
    assert first.evaluations[-1]["validation_loss"] < first.history[0]["loss"]
    assert all(torch.equal(*pair) for pair in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_parts_of_a_batch_have_the_random_numbers_of_the_whole(system: tuple[ModelConfig, FreshTokens]) -> None:
    model, data = system
    built = build_model(model, data, data.quantizer)
    whole, part = (
        draw_batch(data, torch.arange(8), RECIPE, generator(0), built, images) for images in (slice(8), slice(3, 5))
    )
    assert part.uniforms.shape == (2, 16, built.head.loss_numbers)
    assert torch.equal(part.uniforms, whole.uniforms[3:5])
    assert torch.equal(part.tokens, whole.tokens[3:5])


def test_the_validation_loss_does_not_depend_on_the_number_of_processes(
    system: tuple[ModelConfig, FreshTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = system
    model = build_model(config, data, data.quantizer).eval()
    alone = Validation(data, data.quantizer, SINGLE_PROCESS).loss(model)
    monkeypatch.setattr(Processes, "total", lambda _, value: value)
    shares = [Validation(data, data.quantizer, Processes(rank, 3)).loss(model) for rank in range(3)]
    assert sum(shares) == pytest.approx(alone, rel=1e-5)
