"""Level values of the quantizer's families (paper Sec. 3.2), in units of normalised latents.

Shapes: C dimensions, B levels, M values of each dimension.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from tokenbridge.base.errors import UserError

OUTER_EDGE = 3.0  # where the released quantizer cuts the tails of N(0, 1)
BIN_VALUES = 8  # values in each of the bins from which the density of the data is estimated
NEGLIGIBLE_GAIN = 1e-8  # Lloyd's iteration stops when a step reduces the squared error by at most this share


def gaussian_levels(levels: int) -> Tensor:
    """Return the level values [B], float64, of N(0, 1): the mean of each equal-probability interval (paper Eq. 3).

    The outermost intervals are cut at +-3, as in the released code.
    """
    normal = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    inner = normal.icdf(torch.arange(1, levels, dtype=torch.float64) / levels)
    edge = torch.tensor([OUTER_EDGE], dtype=torch.float64)
    edges = torch.cat([-edge, inner, edge])
    density = normal.log_prob(edges).exp()
    return (density[:-1] - density[1:]) / (normal.cdf(edges[1:]) - normal.cdf(edges[:-1]))


def stretched_gaussian_levels(levels: int, reach: float) -> Tensor:
    """Return the released quantizer's levels [B], float32: those of N(0, 1), with +-3 stretched to +-``reach``."""
    return stretch(gaussian_levels(levels), reach)


def stretch(levels: Tensor, reach: float) -> Tensor:
    """Return levels of N(0, 1) [B] as float32, with +-3 stretched to +-``reach``."""
    return levels.float() * (reach / OUTER_EDGE)


def uniform_levels(levels: int, reach: float) -> Tensor:
    """Return level values [B], float32: the centres of B equal cells that cover [-``reach``, ``reach``]."""
    centres = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    return ((2 * centres - 1) * reach).float()


FIXED_FAMILIES: dict[str, Callable[[int, float], Tensor]] = {
    "gaussian": stretched_gaussian_levels,
    "uniform": uniform_levels,
}
"""The families whose levels depend only on B and the range."""


def lloyd_max_levels(columns: Tensor, levels: int) -> Tensor:
    """Return the level values [C, B], float64, of least squared error on each dimension's values [C, M].

    Lloyd's iteration (Max 1960, Lloyd 1982) starts from the optimal companding of the data. The cells of sorted values
    are slices, and prefix sums give their means. A step makes C x B searches, and no array has B x M elements.

    Raises:
        UserError: if a dimension has fewer distinct values than B.
    """
    mean = columns.double().mean(1, keepdim=True)
    values = (columns.double() - mean).sort(dim=1).values
    _check_distinct(values, levels)
    energy, sums = values.square().sum(1), F.pad(values.cumsum(1), (1, 0))
    centres, last_error = _companding_levels(values, levels), energy
    while True:
        edges = _cell_edges(values, centres)
        counts, totals = edges.diff(dim=1), sums.gather(1, edges).diff(dim=1)
        means = totals / counts.clamp_min(1)
        error = (energy - (totals * means).sum(1)).clamp_min(0)
        empty = counts == 0
        if not empty.any() and (last_error - error <= NEGLIGIBLE_GAIN * error).all():
            return means + mean
        centres, last_error = torch.where(empty, centres, means), error
        if empty.any():
            centres = _refill(values, edges, centres)


def _check_distinct(values: Tensor, levels: int) -> None:
    distinct = (values.diff(dim=1) > 0).sum(1) + 1
    too_few = (distinct < levels).nonzero().flatten().tolist()
    if too_few:
        raise UserError(
            f"dimensions {too_few} have fewer finite, distinct latents than levels ({levels}): "
            "lower quantizer.levels, raise quantizer.fit_images, or choose another quantizer.family"
        )


def _companding_levels(values: Tensor, levels: int) -> Tensor:
    """Return levels [C, B] spaced as density ** (-1/3), the optimum for many levels (Panter and Dite 1951)."""
    bins = max(levels, values.shape[1] // BIN_VALUES)
    knots = values[:, torch.linspace(0, values.shape[1] - 1, bins + 1, dtype=torch.float64).long()]
    widths = knots.diff(dim=1)
    # the density of an equal-probability bin is 1 / width, so its share of the levels is width * width ** (-1/3)
    share = F.pad(widths.pow(2 / 3).cumsum(1), (1, 0))
    wanted = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels * share[:, -1:]
    within = torch.searchsorted(share, wanted) - 1
    part = (wanted - share.gather(1, within)) / share.diff(dim=1).gather(1, within)
    return knots.gather(1, within) + part * widths.gather(1, within)


def _cell_edges(values: Tensor, centres: Tensor) -> Tensor:
    """Return the indices [C, B + 1] at which each nearest-level cell starts and ends in the sorted values [C, M]."""
    inner = torch.searchsorted(values, (centres[:, 1:] + centres[:, :-1]) / 2, right=True)
    return F.pad(F.pad(inner, (1, 0)), (0, 1), value=values.shape[1])


def _refill(values: Tensor, edges: Tensor, centres: Tensor) -> Tensor:
    """Move the first empty cell's level of each dimension to the end of its cell of most weight; return sorted levels.

    The weight of a cell is its number of values times its squared width.
    """
    counts = edges.diff(dim=1)
    last = (edges[:, 1:] - 1).clamp_min(0)
    spans = values.gather(1, last) - values.gather(1, edges[:, :-1].clamp_max(values.shape[1] - 1))
    widest = (counts * spans.square()).argmax(1, keepdim=True)
    empty, first_empty = (counts == 0).max(1, keepdim=True)
    target = torch.where(empty, values.gather(1, last.gather(1, widest)), centres.gather(1, first_empty))
    return centres.scatter(1, first_empty, target).sort(dim=1).values
