"""Exponential moving average of a model's weights (paper Table 4: 0.9999)."""

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """Averaged copy of ``model``'s parameters.

    Args:
        warmup: let the decay grow as (1 + n) / (10 + n), so that short runs are not held back by the
            random start. Differs: the released code has no warm-up and needs some 100k steps.
    """

    def __init__(self, model: Model, decay: float, warmup: bool) -> None:
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Model) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.model.load_state_dict(state_dict["model"])
