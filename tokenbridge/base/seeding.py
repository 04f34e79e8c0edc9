"""Randomness as a function of names and numbers: no draw depends on what ran before it."""

import hashlib
from functools import lru_cache

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed for the stream named by ``parts``, such as ``derive_seed(seed, "order", epoch)``."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator for the stream named by ``parts``. Its draws do not depend on the device in use."""
    return torch.Generator().manual_seed(derive_seed(*parts))


class EpochOrder:
    """The examples of each step: every example once per epoch, in an order drawn from (seed, epoch).

    A batch may contain the end of one epoch and the start of the next. So progress is counted in images.
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        if examples < 1:
            raise ValueError("there are no examples to train on: check data/images/manifest.json")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed

    def steps(self, epochs: float) -> int:
        """Return the number of steps in ``epochs``, at least one."""
        return max(1, round(epochs * self.examples / self.batch_size))

    def indices(self, step: int) -> torch.Tensor:
        """Return the example indices of one step, int64 [batch_size]."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.examples
        span = range(int(epochs[0]), int(epochs[-1]) + 1)
        orders = {epoch: _order(self.examples, self.seed, epoch) for epoch in span}
        return torch.cat([order[positions[epochs == epoch] % self.examples] for epoch, order in orders.items()])


@lru_cache(maxsize=2)  # several threads may ask for two epochs
def _order(examples: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(examples, generator=generator(seed, "order", epoch))
