"""What the uniform random numbers of an image become: indices of classes, and normal numbers.

A draw is the inverse of the cumulative distribution at one uniform number. So each draw of an image has its own number,
whatever is drawn beside it.
"""

import math

import torch
from torch import Tensor

from tokenbridge.base.device import widest_float

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 are spread as evenly as can be
LEAST_UNIFORM = 2**-24  # the smallest positive number that torch.rand gives in float32


def shifted(uniforms: Tensor, step: int) -> Tensor:
    """Return the uniforms moved in [0, 1) by a distance of each step's own, in the widest precision of the device."""
    return (uniforms.to(widest_float(uniforms.device)) + step * GOLDEN_RATIO) % 1


def to_class(uniforms: Tensor, probabilities: Tensor) -> Tensor:
    """Return the indices [...] at which the cumulative distribution reaches ``uniforms`` [...].

    The probabilities [..., J] need not sum to 1.
    """
    cumulative = probabilities.cumsum(dim=-1)
    return (cumulative[..., :-1] <= uniforms.to(cumulative.dtype)[..., None] * cumulative[..., -1:]).sum(dim=-1)


def to_normal(uniforms: Tensor) -> Tensor:
    """Return the float32 standard normal numbers at which the cumulative distribution is ``uniforms``, in [0, 1).

    The uniforms are first clamped to [2**-24, 1 - 2**-24]. So every result is finite, and none is beyond +-5.3. A true
    normal number is beyond that with probability 1.2e-7.
    """
    exact = uniforms.to(widest_float(uniforms.device)).clamp(LEAST_UNIFORM, 1 - LEAST_UNIFORM)
    return torch.special.ndtri(exact).float()
