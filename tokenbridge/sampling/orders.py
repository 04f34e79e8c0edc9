"""Orders of positions: in which one the positions of each image are revealed."""

from collections.abc import Iterator
from functools import cache
from itertools import count

import torch
from torch import Tensor

from tokenbridge.config.model import RevealOrder


def reveal_order(shuffled: Tensor, order: RevealOrder, height: int, width: int) -> Tensor:
    """Return the order of the positions of a grid [N, S], whose tail is revealed first.

    With ``halton``, each image has Halton's order moved over the grid, in a circle: the first position lies where the
    image's ``shuffled`` order begins, so no further random number is drawn. Without that, all images would share one
    order, and each position would always see the same others.

    Differs: Halton-MaskGIT begins at a random place of the list instead. Later parts of it are less even, because they
    fill the gaps of the first.

    Args:
        shuffled: each image's own random order [N, S].
    """
    if order == "raster":
        return torch.arange(shuffled.shape[1] - 1, -1, -1, device=shuffled.device).expand_as(shuffled)
    if order == "halton":
        cells = torch.tensor(halton_order(height, width), device=shuffled.device).flip(0)
        down = shuffled[:, -1:] // width - cells[-1] // width
        right = shuffled[:, -1:] % width - cells[-1] % width
        return (cells // width + down) % height * width + (cells % width + right) % width
    return shuffled


@cache
def halton_order(height: int, width: int) -> tuple[int, ...]:
    """Return every position of a grid, by rows, in the order of Halton's points (Halton-MaskGIT, arXiv 2503.17076).

    The points have the bases 2 (rows) and 3 (columns). Each point takes the position that it lies in, if that is still
    free. So the positions of any beginning of the list are spread evenly over the grid.
    """
    found: dict[int, None] = {}
    for position in _halton_positions(height, width):
        found[position] = None
        if len(found) == height * width:
            break
    return tuple(found)


def _halton_positions(height: int, width: int) -> Iterator[int]:
    for index in count(1):
        yield _scaled(index, 2, height) * width + _scaled(index, 3, width)


def _scaled(index: int, base: int, size: int) -> int:
    """Return floor(size u), where the digits of u after the point are those of ``index``, reversed."""
    reversed_digits, scale = 0, 1
    while index:
        index, digit = divmod(index, base)
        reversed_digits, scale = reversed_digits * base + digit, scale * base
    return size * reversed_digits // scale
