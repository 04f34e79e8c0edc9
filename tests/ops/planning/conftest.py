"""Settings of the models of conf/, and smaller ones."""

import pytest

from tests.support.checkout import CHECKOUT
from tokenbridge.config import Config
from tokenbridge.config.params import compose_config, validate

CONF = CHECKOUT / "conf"
CHOICES = {
    "tiny": ["experiment=paper"],
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
