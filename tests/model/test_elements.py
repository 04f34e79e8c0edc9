"""The trunk of elements: single numbers are masked, known and drawn."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import Tensor

from tests.support.small_model import QUANTIZER, random_model
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import SamplingSettings
from tokenbridge.model import AutoregressiveModel
from tokenbridge.model.elements import ElementTransformer
from tokenbridge.model.trunks import load_model
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.fitting import fit_quantizer

POSITIONS, DIMENSIONS, NUMBERS = 16, 4, 64
LABELS = torch.tensor([0, 2, 3])  # the last is no class


@pytest.fixture(scope="module")
def model() -> AutoregressiveModel:
    return random_model("elements")


@pytest.fixture(scope="module")
def values() -> Tensor:
    return torch.randn(3, POSITIONS, DIMENSIONS, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(8, (3, POSITIONS, DIMENSIONS), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def order() -> Tensor:
    return torch.rand(3, NUMBERS, generator=torch.Generator().manual_seed(3)).argsort(dim=1)


def changed(x: Tensor, numbers: Tensor, by: float) -> Tensor:
    """``x`` [N, S, C] with ``by`` added to some numbers [N, K]."""
    return x.flatten(1).scatter_add(1, numbers, torch.full(numbers.shape, by).to(x.dtype)).view_as(x)


@torch.no_grad()
def test_features_depend_on_every_known_number_and_on_no_masked_one(
    model: AutoregressiveModel, values: Tensor, order: Tensor
) -> None:
    masked, known = order[:, :40], order[:, 40:]
    z = model.features(values, LABELS, known, masked)
    assert torch.equal(model.features(changed(values, masked, 9.0), LABELS, known, masked), z)
    for number in range(24):
        others = model.features(changed(values, known[:, number : number + 1], 9.0), LABELS, known, masked)
        assert not torch.isclose(others, z).all(dim=-1).any()


@torch.no_grad()
def test_a_known_number_of_zero_is_not_a_masked_one(model: AutoregressiveModel, order: Tensor) -> None:
    zeros = torch.zeros(3, POSITIONS, DIMENSIONS)
    z = model.features(zeros, LABELS, order[:, 40:], order[:, :1])
    assert not torch.isclose(model.features(zeros, LABELS, order[:, 41:], order[:, :1]), z).all()


@torch.no_grad()
def test_with_all_masked_only_the_class_counts(model: AutoregressiveModel, values: Tensor, order: Tensor) -> None:
    nothing, every = order[:, :0], order.sort(dim=1).values
    z = model.features(values, LABELS, nothing, every)
    assert torch.equal(model.features(values + 1, LABELS, nothing, every), z)
    assert not torch.isclose(model.features(values, LABELS.roll(1), nothing, every), z).all(dim=-1).any()


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_masked_numbers_alone(
    model: AutoregressiveModel, values: Tensor, tokens: Tensor, order: Tensor
) -> None:
    masked = order[:, :40].sort(dim=1).values
    z = model.features(values, LABELS, order[:, 40:], masked).flatten(0, 1)
    targets = tokens.flatten(1).gather(1, masked).flatten()
    loss = model(values, tokens, LABELS, order, 40)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(model.head(z, targets[:, None])[:, 0], targets))
    visible = (changed(tokens.float(), order[:, 40:], 1.0) % 8).long()
    assert torch.equal(model(values, visible, LABELS, order, 40), loss)


def test_gradient_checkpointing_changes_no_gradient(values: Tensor, tokens: Tensor, order: Tensor) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = random_model("elements")
        model.enable_gradient_checkpointing() if checkpointed else model.disable_gradient_checkpointing()
        model(values, tokens, LABELS, order, 40).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_it_is_saved_and_loaded_with_its_trunk(
    model: AutoregressiveModel, values: Tensor, order: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is ElementTransformer
    inputs = values, LABELS, order[:, 40:], order[:, :40]
    assert torch.equal(loaded.features(*inputs), model.features(*inputs))


@torch.no_grad()
def test_one_number_a_step_gives_the_product_of_the_conditionals(vae_latents: Tensor) -> None:
    """By chi-square over all 81 images of 2 x 1 positions, two dimensions and three levels."""
    model = random_model("elements", grid_height=2, grid_width=1, dimensions=2, levels=3)
    quantizer = fit_quantizer(vae_latents[:, :2], replace(QUANTIZER, levels=3, order="natural"))
    count, first = 20_000, torch.tensor([[2, 0, 3, 1]])
    uniforms = torch.rand(count, 4, 1, generator=generator("elements"))
    draws = Draws(first.expand(count, -1), uniforms)
    labels = torch.zeros(count, dtype=torch.long)
    drawn = sample_tokens(model, quantizer, labels, draws, SamplingSettings(steps=4, guidance_scale=1.0))
    images = torch.tensor(list(product(range(3), repeat=4)))
    latents, chances = quantizer.decode(images.view(-1, 2, 2)), torch.ones(len(images))
    for place in (3, 2, 1, 0):  # the tail of the order is revealed first
        known, wanted = first[:, place + 1 :].expand(81, -1), first[:, place : place + 1].expand(81, -1)
        z = model.features(latents, labels[:81], known, wanted)[:, 0]
        target = images.gather(1, wanted)
        chances *= model.head(z, target)[:, 0].softmax(dim=-1).gather(1, target)[:, 0]
    found = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1).bincount(minlength=81)
    assert chances.sum() == pytest.approx(1.0, abs=1e-5)
    expected = chances.double() / chances.double().sum() * count
    assert scipy.stats.chisquare(found.numpy(), expected.numpy()).pvalue > 0.001
