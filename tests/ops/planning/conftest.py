"""Settings of the models of conf/, and smaller ones; models without memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.checkout import CHECKOUT
from tokenbridge.config import Config
from tokenbridge.config.params import compose_config, validate
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.planning.sizes import Sizes

CONF = CHECKOUT / "conf"
CHOICES = {
    "tiny": ["model=tiny"],
    "base": ["experiment=imagenet_l", "model=base"],
    "large": ["experiment=imagenet_l"],
    "huge": ["experiment=imagenet_h"],
}


def composed(*overrides: str) -> Config:
    return validate(compose_config(overrides, CONF))


@pytest.fixture(scope="session", params=CHOICES)
def config(request: pytest.FixtureRequest) -> Config:
    """Each model size of conf/ in turn, with its data."""
    return composed(*CHOICES[request.param])


Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def batch(sizes: Sizes, images: int, device: str) -> Inputs:
    """Values, tokens, labels and order of a training step; zeros where there is memory at all."""
    with torch.device(device):
        values = torch.zeros(images, sizes.positions, sizes.dimensions)
        order = torch.arange(sizes.positions).expand(images, -1)
        return values, values.long(), torch.zeros(images, dtype=torch.long), order


def train_step(model: TokenBridgeTransformer, sizes: Sizes, images: int, masked: int) -> Callable[[], None]:
    """Forward and backward where the model is."""
    inputs = batch(sizes, images, model.device.type)

    def step() -> None:
        model(*inputs, masked).backward()

    return step
