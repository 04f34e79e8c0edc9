"""Properties of the dimension-wise quantizer."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.small_model import QUANTIZER
from tokenbridge.base.errors import UserError
from tokenbridge.base.loading import load_whole
from tokenbridge.tokenizer.fitting import fit_quantizer, quantizer_report
from tokenbridge.tokenizer.latents import low_frequency_share, to_maps, to_sequence
from tokenbridge.tokenizer.levels import stretched_gaussian_levels
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer


def standard(levels: int, dimensions: int = 3) -> DimensionwiseQuantizer:
    values = stretched_gaussian_levels(levels, 5.0)
    order = torch.arange(dimensions).flip(0)
    return DimensionwiseQuantizer.build(
        torch.zeros(dimensions), torch.ones(dimensions), values.expand(dimensions, -1), order
    )


def finite_floats() -> st.SearchStrategy[float]:
    return st.floats(-1e6, 1e6, width=32)


@given(levels=st.integers(2, 256))
def test_every_token_survives_decoding_and_encoding(levels: int) -> None:
    quantizer = standard(levels)
    tokens = torch.arange(levels)[:, None].expand(-1, 3)
    assert torch.equal(quantizer.encode(quantizer.decode(tokens)), tokens)


@settings(deadline=None)
@given(levels=st.integers(2, 64), values=st.lists(finite_floats(), min_size=3, max_size=30))
def test_the_nearest_level_is_chosen(levels: int, values: list[float]) -> None:
    quantizer = standard(levels)
    latents = torch.tensor(values[: len(values) // 3 * 3]).reshape(-1, 3)
    chosen = (quantizer.decode(quantizer.encode(latents)) - latents).abs()
    nearest = (quantizer.levels[0] - latents[..., None]).abs().amin(-1)
    # at float32 precision two levels may be equally near
    assert (chosen <= nearest * (1 + 1e-5) + 1e-6).all()


@given(first=finite_floats(), second=finite_floats())
def test_encoding_is_monotone(first: float, second: float) -> None:
    low, high = sorted((first, second))
    quantizer = standard(16, dimensions=1)
    assert quantizer.encode(torch.tensor([[low]])) <= quantizer.encode(torch.tensor([[high]]))


@given(shape=st.lists(st.integers(1, 4), max_size=3))
def test_any_batch_shape(shape: list[int]) -> None:
    latents = torch.zeros(*shape, 3)
    tokens = standard(8).encode(latents)
    assert tokens.shape == latents.shape
    assert tokens.dtype == torch.int64


def test_a_tie_goes_to_the_lower_level() -> None:
    quantizer = DimensionwiseQuantizer.build(
        torch.zeros(1), torch.ones(1), torch.tensor([[-1.0, 1.0]]), torch.tensor([0])
    )
    assert quantizer.encode(torch.tensor([[0.0]])).item() == 0


def test_beyond_the_outermost_levels_it_saturates() -> None:
    quantizer = standard(8)
    assert quantizer.encode(torch.tensor([[-1e38, 1e38, 1e30]])).tolist() == [[0, 7, 7]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(vae_latents: Tensor, value: float) -> None:
    with pytest.raises(ValueError, match="latents contain NaN or infinity: check the VAE"):
        standard(8).encode(torch.tensor([[0.0, value, 0.0]]))
    vae_latents[3, 2, 1, 0] = value
    with pytest.raises(ValueError, match="latents to fit the quantizer to contain NaN or infinity"):
        fit_quantizer(vae_latents, QUANTIZER)
    with pytest.raises(ValueError, match="scale contain NaN"):
        DimensionwiseQuantizer.build(torch.zeros(1), torch.tensor([value]), torch.arange(2.0)[None], torch.arange(1))


def test_head_order_is_undone(quantizer: DimensionwiseQuantizer) -> None:
    tokens = torch.randint(8, (2, 16, 4))
    assert torch.equal(quantizer.from_head_order(quantizer.to_head_order(tokens)), tokens)
    first = int(quantizer.dimension_order[0])
    assert torch.equal(quantizer.to_head_order(tokens)[..., 0], tokens[..., first])


def test_normalisation_is_undone_and_standardises(quantizer: DimensionwiseQuantizer, vae_latents: Tensor) -> None:
    latents = quantizer.normalize(vae_latents)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(quantizer.denormalize(latents), vae_latents, atol=1e-4, rtol=1e-4)


def test_sequence_and_maps_are_inverse(vae_latents: Tensor) -> None:
    assert torch.equal(to_maps(to_sequence(vae_latents), 4, 4), vae_latents)
    assert torch.equal(to_sequence(vae_latents)[0, 5], vae_latents[0, :, 1, 1])  # row by row


def test_smooth_dimensions_come_first(quantizer: DimensionwiseQuantizer, vae_latents: Tensor) -> None:
    share = low_frequency_share(quantizer.normalize(vae_latents))
    assert quantizer.dimension_order.tolist() == [1, 2, 3, 0]  # by the fixture's smoothness 3, 1, 0.3, 0
    assert (share[quantizer.dimension_order].diff() <= 0).all()


def test_a_constant_map_is_all_low_frequency_and_a_checkerboard_none() -> None:
    checkers = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2.0 - 1
    maps = torch.stack([torch.ones(4, 4), checkers])[None]
    torch.testing.assert_close(low_frequency_share(maps), torch.tensor([1.0, 0.0]))


def test_statistics_and_order_follow_the_settings(vae_latents: Tensor) -> None:
    fixed = fit_quantizer(vae_latents, replace(QUANTIZER, statistics="fixed", fixed_loc=2.0, fixed_scale=4.0))
    assert fixed.loc.tolist() == [2.0] * 4
    assert fixed.scale.tolist() == [4.0] * 4
    common = fit_quantizer(vae_latents, replace(QUANTIZER, statistics="global", order="natural"))
    assert common.scale.unique().numel() == 1
    assert common.dimension_order.tolist() == [0, 1, 2, 3]
    given_order = fit_quantizer(vae_latents, replace(QUANTIZER, order="given", given_order=[3, 1, 0, 2]))
    assert given_order.dimension_order.tolist() == [3, 1, 0, 2]


def test_a_wrong_order_is_refused(vae_latents: Tensor) -> None:
    with pytest.raises(ValueError, match="not an order of 4 dimensions"):
        fit_quantizer(vae_latents, replace(QUANTIZER, order="given", given_order=[0, 1]))


def test_a_constant_dimension_is_refused(vae_latents: Tensor) -> None:
    vae_latents[:, 2] = 1.0
    with pytest.raises(ValueError, match="constant"):
        fit_quantizer(vae_latents, QUANTIZER)


@pytest.mark.parametrize("family", ["gaussian", "uniform", "lloyd_max", "entropy_coded"])
def test_every_family_survives_its_tokens(family: str, vae_latents: Tensor) -> None:
    config = replace(QUANTIZER, family=family)
    quantizer = fit_quantizer(vae_latents, config)
    assert quantizer.levels.shape == (4, config.classes)
    latents = quantizer.normalize(vae_latents)
    tokens = quantizer.encode(to_sequence(latents))
    assert torch.equal(quantizer.encode(quantizer.decode(tokens)), tokens)


def test_a_patch_is_a_token_of_more_dimensions() -> None:
    vae_latents = torch.randn(8, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    quantizer = fit_quantizer(vae_latents, replace(QUANTIZER, patch_size=2))
    assert quantizer.config.patch_size == 2
    assert quantizer.levels.shape == (12, 8)
    latents = quantizer.normalize(vae_latents)
    assert latents.shape == (8, 12, 2, 3)
    torch.testing.assert_close(quantizer.denormalize(latents), vae_latents)
    lower_left_of_second = (vae_latents[0, 1, 1, 0] - quantizer.loc[6]) / quantizer.scale[6]  # c p p + i p + j
    torch.testing.assert_close(latents[0, 6, 0, 0], lower_left_of_second)


def test_a_patch_must_divide_the_grid(vae_latents: Tensor) -> None:
    with pytest.raises(UserError, match=r"patch_size is 3: it must divide the VAE's grid, 4 x 4"):
        fit_quantizer(vae_latents, replace(QUANTIZER, patch_size=3))


PUBLISHED = [  # family, range, levels; mse, SQNR in dB, entropy and bits above the bound on N(0, 1)
    ("gaussian", 5.0, 16, 0.01028, 19.9, 3.72, 0.41),
    ("gaussian", 3.0, 16, 0.02089, 16.8, 4.00, 1.21),
    ("uniform", 3.0, 16, 0.01247, 19.0, 3.46, 0.30),
    ("uniform", 5.0, 16, 0.03252, 14.9, 2.75, 0.28),
    ("lloyd_max", 5.0, 16, 0.00950, 20.2, 3.77, 0.41),
    ("gaussian", 5.0, 64, 0.00066, 31.8, 5.72, 0.44),
    ("gaussian", 3.0, 64, 0.00393, 24.1, 6.00, 2.00),
    ("uniform", 3.0, 64, 0.00121, 29.2, 5.45, 0.61),
    ("uniform", 5.0, 64, 0.00203, 26.9, 4.73, 0.26),
    ("lloyd_max", 5.0, 64, 0.00065, 31.9, 5.71, 0.41),
]


@pytest.mark.parametrize(("family", "reach", "levels", "mse", "sqnr_db", "entropy", "above_bound"), PUBLISHED)
def test_the_report_on_normal_data_tells_the_published_numbers(
    family: str, reach: float, levels: int, mse: float, sqnr_db: float, entropy: float, above_bound: float
) -> None:
    config = replace(QUANTIZER, family=family, range=reach, levels=levels, statistics="fixed", order="natural")
    normal = torch.special.ndtri((torch.arange(1_000_000).double() + 0.5) / 1_000_000).float().reshape(-1, 1, 1, 1)
    (row,) = quantizer_report(fit_quantizer(normal, config), normal)
    assert row["mse"] == pytest.approx(mse, rel=0.015)
    assert row["sqnr_db"] == pytest.approx(sqnr_db, abs=0.1)
    assert row["entropy_bits"] == pytest.approx(entropy, abs=0.03)
    assert row["bits_above_bound"] == pytest.approx(above_bound, abs=0.025)


# distortion; step, levels within +-5 and entropy on N(0, 1)
ENTROPY_CODED = [
    (0.00066, 0.0890, 113, 5.538),
    (0.002, 0.1549, 65, 4.739),
    (0.01, 0.3464, 29, 3.584),
    (0.03, 0.600, 17, 2.805),
    (0.1, 1.095, 11, 1.984),
]


@pytest.mark.parametrize(("distortion", "step", "levels", "entropy"), ENTROPY_CODED)
def test_equal_steps_have_the_wanted_error_and_the_known_entropy(
    distortion: float, step: float, levels: int, entropy: float
) -> None:
    config = replace(
        QUANTIZER, family="entropy_coded", distortion=distortion, statistics="fixed", order="natural", levels=2
    )
    normal = torch.special.ndtri((torch.arange(1_000_000).double() + 0.5) / 1_000_000).float().reshape(-1, 1, 1, 1)
    quantizer = fit_quantizer(normal, config)
    (row,) = quantizer_report(quantizer, normal)
    assert quantizer.classes == config.classes == levels
    assert quantizer.values.diff(dim=1) == pytest.approx(step, rel=0.001)
    assert row["mse"] == pytest.approx(distortion, rel=0.001)
    assert row["entropy_bits"] == pytest.approx(entropy, rel=0.001)
    assert row["bits_above_bound"] == pytest.approx(entropy + math.log2(distortion) / 2, abs=0.001)


def test_no_rate_is_needed_where_the_error_is_the_variance() -> None:
    quantizer = DimensionwiseQuantizer.build(
        torch.zeros(1), torch.ones(1), torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    )
    (row,) = quantizer_report(quantizer, torch.randn(100, 1, 1, 1).clamp(-1, 1))
    assert row["bits_above_bound"] == row["entropy_bits"] == 0


UNEQUAL = torch.tensor([0.1, 1.0, 6.0, 2.0])


def unequal_latents(seed: int) -> Tensor:
    """A million values in each of 4 dimensions, whose deviations differ by up to 60 times."""
    noise = torch.randn(1000, 4, 32, 32, generator=torch.Generator().manual_seed(seed))
    return noise * UNEQUAL[:, None, None] + torch.tensor([1.0, -3.0, 0.0, 10.0])[:, None, None]


def sqnr_of_deviations(quantizer: DimensionwiseQuantizer, vae_latents: Tensor) -> Tensor:
    """Variance over squared error in dB, of each dimension [C], in VAE units."""
    latents = quantizer.normalize(vae_latents)
    tokens = quantizer.encode(to_sequence(latents))
    restored = quantizer.denormalize(to_maps(quantizer.decode(tokens), *latents.shape[-2:]))
    noise = (restored - vae_latents).square().mean((0, 2, 3))
    return 10 * (vae_latents.var((0, 2, 3)) / noise).log10()


@pytest.mark.parametrize("levels", [8, 16, 32, 64, 128])
def test_on_unequal_variances_lloyd_max_holds_and_one_global_scale_fails(levels: int) -> None:
    fitted_to, held_out = unequal_latents(0), unequal_latents(1)
    released = replace(QUANTIZER, levels=levels, order="natural")
    sqnr = {
        (family, statistics): sqnr_of_deviations(
            fit_quantizer(fitted_to, replace(released, family=family, statistics=statistics)), held_out
        )
        for family in ("gaussian", "lloyd_max")
        for statistics in ("per_dimension", "global")
    }
    best = sqnr["gaussian", "per_dimension"]
    assert (sqnr["lloyd_max", "per_dimension"] > best - 0.02).all()
    assert (sqnr["lloyd_max", "global"] > best - 0.02).all()  # its levels follow each dimension's data
    assert (sqnr["gaussian", "global"] < best - 5).any()  # too coarse for the narrow dimensions


def test_it_survives_saving_whole(quantizer: DimensionwiseQuantizer, tmp_path: Path) -> None:
    quantizer.save_pretrained(tmp_path)
    loaded = load_whole(DimensionwiseQuantizer, tmp_path)
    for name, buffer in quantizer.named_buffers():
        assert torch.equal(dict(loaded.named_buffers())[name], buffer)


def test_lower_precision_leaves_the_levels_alone(quantizer: DimensionwiseQuantizer) -> None:
    before = quantizer.levels.clone()
    assert torch.equal(quantizer.to(torch.bfloat16).levels, before)
    assert quantizer.half().levels.dtype == torch.float32
