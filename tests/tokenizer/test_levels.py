"""Level values of each family, and how well they quantize: on data that they were not fitted to."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.tokenizer.levels import gaussian_levels, lloyd_max_levels, stretched_gaussian_levels, uniform_levels

RELEASED_RANGE = 5.0


def normal(seed: int) -> Tensor:
    return torch.randn(1, 20_000, generator=torch.Generator().manual_seed(seed))


def normal_quantiles(count: int = 200_000) -> Tensor:
    """N(0, 1) as evenly as so many values can hold it [1, count]: no sampling noise."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[None]


def quantized(levels: Tensor, columns: Tensor) -> Tensor:
    """Columns [C, M], each value replaced by the nearest of its dimension's levels [C, B]."""
    midpoints = (levels[:, 1:] + levels[:, :-1]) / 2
    return levels.gather(1, torch.searchsorted(midpoints.contiguous(), columns))


def sqnr_db(levels: Tensor, columns: Tensor) -> Tensor:
    """Of each dimension [C]."""
    noise = (quantized(levels, columns) - columns).square().mean(1)
    return 10 * (columns.square().mean(1) / noise).log10()


@given(levels=st.integers(2, 256))
def test_gaussian_levels_ascend_and_mirror(levels: int) -> None:
    values = gaussian_levels(levels)
    assert (values.diff() > 0).all()
    torch.testing.assert_close(values, -values.flip(0))
    assert values.abs().max() < 3


def test_the_stretch_takes_three_to_the_range() -> None:
    torch.testing.assert_close(stretched_gaussian_levels(64, 6.0), 2 * gaussian_levels(64).float())


def test_uniform_levels_are_the_centres_of_equal_cells() -> None:
    assert uniform_levels(4, 2.0).tolist() == [-1.5, -0.5, 0.5, 1.5]


def test_two_levels_of_a_normal_are_the_means_of_its_halves() -> None:
    half_mean = math.sqrt(2 / math.pi)
    levels = lloyd_max_levels(normal_quantiles(), 2)[0]
    assert levels.tolist() == pytest.approx([-half_mean, half_mean], abs=1e-4)


def test_lloyd_max_finds_the_published_optimum() -> None:
    """Max (1960), table 1: eight levels of N(0, 1)."""
    levels = lloyd_max_levels(normal_quantiles(), 8)[0]
    assert levels[4:].tolist() == pytest.approx([0.2451, 0.7560, 1.344, 2.152], abs=1e-3)
    torch.testing.assert_close(levels, -levels.flip(0), atol=1e-3, rtol=0)


@given(values=st.lists(st.integers(-50, 50), min_size=4, max_size=40), levels=st.integers(2, 4))
def test_levels_of_any_data_are_the_means_of_their_cells(values: list[int], levels: int) -> None:
    """Repeated values and wide gaps leave cells empty on the way; none is at the end."""
    distinct = sorted(set(values))
    columns = torch.tensor([values], dtype=torch.float64)
    if len(distinct) < levels:
        with pytest.raises(UserError, match="fewer finite, distinct latents than levels"):
            lloyd_max_levels(columns, levels)
        return
    fitted = lloyd_max_levels(columns, levels)
    assert (fitted.diff(dim=1) > 0).all()
    nearest = quantized(fitted, columns)
    for level in fitted[0]:
        assert columns[nearest == level].mean().item() == pytest.approx(level.item(), abs=1e-9)


def test_as_many_levels_as_values_reproduce_them() -> None:
    columns = torch.tensor([[1000.0, -3.0, 0.0, 0.0, 0.5], [7.0, 1.0, 2.0, 3.0, 3.0]], dtype=torch.float64)
    expected = torch.tensor([[-3, 0, 0.5, 1000], [1, 2, 3, 7]], dtype=torch.float64)
    torch.testing.assert_close(lloyd_max_levels(columns, 4), expected)


def test_each_dimension_is_fitted_by_itself() -> None:
    columns = torch.cat([normal(0), 100 + 0.01 * normal(1).exp()])
    together = lloyd_max_levels(columns, 16)
    alone = torch.cat([lloyd_max_levels(column[None], 16) for column in columns])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)
    assert torch.equal(together, lloyd_max_levels(columns, 16))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    columns = torch.arange(20.0).expand(2, -1).clone()
    columns[1, 3] = bad
    with pytest.raises(UserError, match=r"dimensions \[1\]"):
        lloyd_max_levels(columns, 4)


@pytest.mark.parametrize("levels", [8, 16, 32, 64, 128])
def test_lloyd_max_stays_level_on_few_values_and_gains_on_other_distributions(levels: int) -> None:
    """160,000 values of a uniform, a normal and a logistic distribution."""
    generator = torch.Generator().manual_seed(levels)

    def draw() -> Tensor:
        flat = torch.rand(160_000, generator=generator)
        columns = torch.stack([flat, torch.randn(160_000, generator=generator), (flat / (1 - flat)).log()])
        return (columns - columns.mean(1, keepdim=True)) / columns.std(1, keepdim=True)

    fitted, held_out = lloyd_max_levels(draw(), levels).float(), draw()
    released = stretched_gaussian_levels(levels, RELEASED_RANGE).expand(3, -1)
    gain = sqnr_db(fitted, held_out) - sqnr_db(released, held_out)
    assert gain[1] > -0.05  # some 1000 values in a cell: the fit is a little noisy
    assert (gain[[0, 2]] > 0).all()
