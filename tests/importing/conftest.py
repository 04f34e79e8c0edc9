"""Checkpoints as others release them, with random weights."""

from pathlib import Path

import pytest

from tests.model.golden import write_vae
from tokenbridge.config import Config
from tokenbridge.params import compose_config, validate

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def released_config() -> Config:
    return validate(compose_config(["experiment=imagenet_l"], ROOT / "conf"))


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))
