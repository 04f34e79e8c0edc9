"""Exponential moving average of a model's weights (paper Table 4: 0.9999)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local_shard(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process holds; return a whole tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Ema:
    """Averages of ``model``'s parameters, by name; sharded like the parameters.

    Args:
        warmup: let the decay grow as (1 + n) / (10 + n), so that the random start does not dominate the average of a
            short run. Differs: the released code has no warm-up and needs some 100k steps.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = torch.zeros((), dtype=torch.long)
        self.averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (10 + count)) if self.warmup else self.decay
        averages = [local_shard(average) for average in self.averages.values()]
        torch._foreach_lerp_(averages, [local_shard(p.detach()) for p in model.parameters()], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the state themselves, not copies."""
        return {"updates": self.updates} | {f"average/{name}": each for name, each in self.averages.items()}

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Swap the averages and the weights of ``model`` within this context; swap them back at its end."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for average, parameter in zip(self.averages.values(), model.parameters(), strict=True):
            ours, theirs = local_shard(average), local_shard(parameter.detach())
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)

    def apply(self, model: nn.Module) -> None:
        """Copy the averages into the weights of ``model``. This is for the end of a training."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.averages[name])
