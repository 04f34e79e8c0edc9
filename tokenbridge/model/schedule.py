"""How many numbers stay masked after each step of drawing them, whether positions of an image or bits of a token."""

import math

from tokenbridge.base.errors import UserError


def masked_counts(positions: int, steps: int) -> list[int]:
    """Return the number of positions still masked after each step: S cos(pi/2 (i + 1)/n), and 0 at the end.

    Each step reveals at least one position.

    Raises:
        UserError: if there are more steps than positions.
    """
    if steps > positions:
        raise UserError(f"{steps} steps for {positions} positions: use at most {positions} steps")
    counts, masked = [], positions
    for i in range(steps - 1):
        masked = max(1, min(masked - 1, math.floor(positions * math.cos(math.pi / 2 * (i + 1) / steps))))
        counts.append(masked)
    return [*counts, 0]
