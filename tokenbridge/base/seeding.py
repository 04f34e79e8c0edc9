"""Randomness as a function of names and numbers, so that nothing depends on what ran before."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for the stream named by ``parts``, such as ``derive_seed(seed, "order", epoch)``."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator on its own stream: the same draws on every device."""
    return torch.Generator().manual_seed(derive_seed(*parts))


class EpochOrder:
    """Which examples each step sees: every example once per epoch, in an order drawn from (seed, epoch).

    Batches run on across the end of an epoch, so that progress is counted in images.
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        if examples < 1:
            raise ValueError("there are no examples to train on: look at data/images/manifest.json")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def steps(self, epochs: float) -> int:
        """Steps that make up ``epochs``, at least one."""
        return max(1, round(epochs * self.examples / self.batch_size))

    def indices(self, step: int) -> torch.Tensor:
        """Example indices of one step, int64 [batch_size]."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.examples
        span = range(int(epochs[0]), int(epochs[-1]) + 1)
        return torch.cat([self._order(epoch)[positions[epochs == epoch] % self.examples] for epoch in span])

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = torch.randperm(self.examples, generator=generator(self.seed, "order", epoch))
        return self._permutation
