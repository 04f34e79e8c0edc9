"""Checkpoints as others release them, with random weights."""

from pathlib import Path

import pytest

from tests.model.golden import write_vae
from tests.support.checkout import CHECKOUT
from tokenbridge.config import Config
from tokenbridge.config.params import compose_config, validate


@pytest.fixture(scope="session")
def released_config() -> Config:
    return validate(compose_config(["experiment=imagenet_l"], CHECKOUT / "conf"))


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))
