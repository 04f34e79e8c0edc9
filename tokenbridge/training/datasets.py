"""Training data of a model: the tokens of each training image, drawn again at every step.

Shapes: N images, S = h x w positions, C dimensions. With a quantizer of patches, one patch is one position.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from tokenbridge.tokenizer.latents import Quantizer
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.tokenizer.tokens import posterior_tokens, token_grid

ALL = slice(None)
T = TypeVar("T")


class TrainingData(Protocol):
    """Tokens to train on: ``FreshTokens`` from moments, or ``tokenbridge.tokenizer.tokens.StoredTokens``."""

    labels: Tensor  # [N]
    num_classes: int
    height: int
    width: int

    def __len__(self) -> int: ...

    def draw(self, indices: Tensor, random: torch.Generator, part: slice = ALL) -> Tensor:
        """Return tokens [n, S, C], in natural order, of the images ``indices[part]`` [n].

        Everything is drawn from ``random`` for all of ``indices``, so the parts of a batch together equal the whole.
        """
        ...


class FreshTokens:
    """Tokens of a fresh posterior sample of each image, mirrored at random if the moments hold both flips."""

    def __init__(self, moments: Moments, quantizer: Quantizer) -> None:
        self.moments, self.quantizer = moments, quantizer
        self.labels, self.num_classes = moments.labels, moments.num_classes
        self.height, self.width = token_grid(moments, quantizer)

    def __len__(self) -> int:
        return len(self.moments)

    def draw(self, indices: Tensor, random: torch.Generator, part: slice = ALL) -> Tensor:
        flips = torch.randint(2, indices.shape, generator=random)
        shape = (len(indices), self.moments.dimensions, self.moments.height, self.moments.width)
        noise = torch.randn(shape, generator=random)[part]
        return posterior_tokens(self.moments.read(indices[part], flips[part]), noise, self.quantizer)


class Prefetcher(Generic[T]):
    """A thread that prepares the data of the next step while the current step runs.

    Args:
        make: returns the data of a step; must depend only on the step.
        stop: the number of steps; step ``stop`` is not prepared.
    """

    def __init__(self, make: Callable[[int], T], stop: int) -> None:
        self.make, self.stop = make, stop
        self.pool = ThreadPoolExecutor(1, "data")
        self.coming: tuple[int, Future[T]] | None = None

    def take(self, step: int) -> T:
        made = self.coming[1].result() if self.coming and self.coming[0] == step else self.make(step)
        self.coming = (step + 1, self.pool.submit(self.make, step + 1)) if step + 1 < self.stop else None
        return made
