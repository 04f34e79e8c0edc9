"""Randomness as a function of names and numbers: no draw depends on what ran before it."""

import hashlib

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
        self._last = -1, torch.empty(0, dtype=torch.long)  # an epoch, and its permutation

    def steps(self, epochs: float) -> int:
        """Return the number of steps in ``epochs``, at least one."""
        return max(1, round(epochs * self.examples / self.batch_size))

    def indices(self, step: int) -> torch.Tensor:
        """Return the example indices of one step, int64 [batch_size]."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.examples
        span = range(int(epochs[0]), int(epochs[-1]) + 1)
        return torch.cat([self._order(epoch)[positions[epochs == epoch] % self.examples] for epoch in span])

    def _order(self, epoch: int) -> torch.Tensor:
        last, permutation = self._last  # another thread may replace the pair at any time
        if epoch != last:
            permutation = torch.randperm(self.examples, generator=generator(self.seed, "order", epoch))
            self._last = epoch, permutation
        return permutation
