"""The lattice E8: its known constants, its tokens, and a pipeline that draws them."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.small_model import QUANTIZER, random_model
from tests.support.small_pipeline import build_pipeline
from tests.tokenizer.test_codebook import gaussian
from tokenbridge.base.errors import UserError
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.fitting import fit_quantizer, load_quantizer, quantizer_report
from tokenbridge.tokenizer.lattice import E8Quantizer, nearest_e8

E8 = replace(QUANTIZER, family="e8", statistics="fixed", order="natural")


def points_of(coset: Tensor, integers: Tensor) -> Tensor:
    return integers + coset / 2


def minimal_vectors() -> Tensor:
    """The 240 points of least norm: two of +-1, or eight of +-1/2 with evenly many minuses; [240, 8]."""
    found = []
    for first, second in itertools.combinations(range(8), 2):
        for signs in itertools.product((-1, 1), repeat=2):
            found.append([signs[0] if i == first else signs[1] if i == second else 0 for i in range(8)])
    halves = [signs for signs in itertools.product((-0.5, 0.5), repeat=8) if sum(signs) % 2 == 0]
    return torch.tensor([*found, *map(list, halves)])


def test_the_second_moment_is_that_of_e8() -> None:
    points = 20 * torch.rand(200_000, 8, generator=torch.Generator().manual_seed(0)) - 10
    moment = (points_of(*nearest_e8(points)) - points).square().mean()
    assert float(moment) == pytest.approx(929 / 12960, rel=0.005)


def test_a_point_has_240_nearest_neighbours() -> None:
    neighbours = minimal_vectors()
    assert len(neighbours.unique(dim=0)) == 240
    assert torch.equal(neighbours.norm(dim=1), torch.full((240,), 2.0).sqrt())
    assert torch.equal(points_of(*nearest_e8(neighbours)), neighbours)  # so all of them are in the lattice
    assert torch.equal(points_of(*nearest_e8(0.49 * neighbours)), torch.zeros(240, 8))
    assert torch.equal(points_of(*nearest_e8(0.51 * neighbours)), neighbours)


def test_no_neighbour_of_the_found_point_is_nearer() -> None:
    """The cells of E8 are cut by the points at distance sqrt(2) and 2; so these decide which point is nearest."""
    further = torch.cat([2 * torch.eye(8), -2 * torch.eye(8)])
    steps = torch.cat([minimal_vectors(), further])
    points = 3 * gaussian(500, 0)
    left = points - points_of(*nearest_e8(points))
    assert (torch.cdist(left, steps).amin(1) >= left.norm(dim=1) - 1e-5).all()


@pytest.mark.parametrize("dimensions", [8, 16])
def test_the_tokens_of_latents_survive_decoding_and_encoding(dimensions: int) -> None:
    quantizer = E8Quantizer(dimensions, step=0.3, reach=6)
    quantizer.filled(quantizer.state_dict() | {"dimension_order": torch.arange(dimensions).flip(0)})
    latents = gaussian(2_000, 0, dimensions).view(20, 100, dimensions)  # some are beyond the reach
    tokens = quantizer.encode(latents)
    assert tokens.shape == (20, 100, quantizer.slots) == (20, 100, dimensions * 9 // 8)
    assert tokens.min() >= 0
    assert tokens.max() < quantizer.classes == 13
    assert torch.equal(quantizer.encode(quantizer.decode(tokens)), tokens)
    inside = (latents.abs() < 0.3 * 5).all(-1)
    assert inside.any()
    errors = (quantizer.decode(tokens) - latents)[inside].unflatten(-1, (-1, 8)).norm(dim=-1)
    assert errors.max() <= 0.3 + 1e-5  # the covering radius is 1 step


def test_every_token_is_a_lattice_point() -> None:
    quantizer = E8Quantizer(8, step=1.0, reach=3)
    tokens = torch.randint(quantizer.classes, (500, 9), generator=torch.Generator().manual_seed(0))
    points = quantizer.decode(tokens)
    torch.testing.assert_close(points_of(*nearest_e8(points)), points)


def test_gaussian_vectors_have_the_wanted_error_at_fewer_bits_than_equal_steps() -> None:
    config = replace(E8, distortion=0.00066)
    latents = gaussian(100_000, 0)[..., None, None]
    mse, entropy = (
        sum(row[name] for row in quantizer_report(fit_quantizer(latents, config), latents)) / 8
        for name in ("mse", "entropy_bits")
    )
    assert mse == pytest.approx(0.00066, rel=0.005)
    assert entropy == pytest.approx(5.429, rel=0.001)
    equal_steps = 5.538  # tests/tokenizer/test_quantizer.py
    assert equal_steps - entropy == pytest.approx(math.log2(12960 / 929 / 12) / 2, abs=0.002)


def test_a_pipeline_of_two_blocks_survives_saving(vae_latents: Tensor, tmp_path: Path) -> None:
    quantizer = fit_quantizer(vae_latents, replace(QUANTIZER, family="e8", patch_size=2))
    assert (quantizer.slots, quantizer.config.dimensions) == (18, 16)
    model = random_model(grid_height=2, grid_width=2, dimensions=16, levels=quantizer.classes, slots=18)
    pipeline = build_pipeline(model, quantizer)
    pipeline.save_pretrained(tmp_path)
    again = TokenBridgePipeline.from_pretrained(tmp_path)
    images = [each([2], 4, generator=torch.Generator().manual_seed(0)).images[0] for each in (pipeline, again)]
    assert np.array_equal(*map(np.asarray, images))
    assert load_quantizer(tmp_path / "quantizer").values.shape == (16, 2 * quantizer.classes)


def test_other_numbers_of_dimensions_are_refused(vae_latents: Tensor) -> None:
    with pytest.raises(UserError, match=r"a token has 4 dimensions, and quantizer\.family=e8 needs a multiple of 8"):
        fit_quantizer(vae_latents, E8)
