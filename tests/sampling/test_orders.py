"""Orders of positions: permutations, and that Halton's spreads each beginning over the grid."""

import pytest
import torch
from torch import Tensor

from tokenbridge.base.seeding import generator
from tokenbridge.config.model import REVEAL_ORDERS, RevealOrder
from tokenbridge.sampling.orders import halton_order, reveal_order

IN_4X4 = [9, 6, 12, 1, 11, 4, 14, 3, 8, 5, 0, 7, 13, 2, 15, 10]
START_IN_8X8 = [34, 21, 48, 11, 46, 25, 60, 7, 32, 18, 53, 9, 43, 30, 58, 4]


def shuffled(images: int, positions: int) -> Tensor:
    return torch.stack([torch.randperm(positions, generator=generator("order", i)) for i in range(images)])


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (16, 16), (1, 7)])
@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_every_position_is_revealed_once(order: RevealOrder, grid: tuple[int, int]) -> None:
    positions = grid[0] * grid[1]
    found = reveal_order(shuffled(6, positions), order, *grid)
    assert torch.equal(found.sort(dim=1).values, torch.arange(positions).expand(6, -1))


def test_halton_lists() -> None:
    assert list(halton_order(4, 4)) == IN_4X4
    assert list(halton_order(8, 8)[:16]) == START_IN_8X8
    # a grid of 2 x 3 fits the bases: its six cells are visited in turn
    assert halton_order(2, 3) == (4, 2, 3, 1, 5, 0)


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (8, 16)])
def test_the_first_quarter_is_spread_more_evenly_than_at_random(grid: tuple[int, int]) -> None:
    positions = grid[0] * grid[1]
    random = shuffled(100, positions)
    halton = reveal_order(random, "halton", *grid)
    assert least_distances(halton, grid).mean() > 1.1 * least_distances(random, grid).mean()


def least_distances(order: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean distance of each position of the first quarter to the next of them, for each image."""
    first = order[:, -(order.shape[1] // 4) :]
    places = torch.stack([first // grid[1], first % grid[1]], dim=-1).double()
    distances = torch.cdist(places, places) + 1e9 * torch.eye(first.shape[1], dtype=torch.double)
    return distances.min(dim=-1).values.mean(dim=-1)


def test_halton_lies_elsewhere_in_each_image_and_starts_as_its_random_order_does() -> None:
    random = shuffled(200, 15)
    moved = reveal_order(random, "halton", 3, 5).flip(1)
    assert torch.equal(moved[:, 0], random[:, -1])
    rows, columns = (torch.tensor(halton_order(3, 5)) // 5, torch.tensor(halton_order(3, 5)) % 5)
    for image in moved:
        assert ((image // 5 - rows) % 3).unique().numel() == ((image % 5 - columns) % 5).unique().numel() == 1
    assert len(moved.unique(dim=0)) == 15
    assert torch.equal(reveal_order(random[7:8], "halton", 3, 5)[0].flip(0), moved[7])
