"""What the tests of imports and exports share."""

from pathlib import Path

import pytest

from tests.model.golden import write_vae
from tests.support.checkout import CHECKOUT
from tokenbridge.cli import main
from tokenbridge.config import Config
from tokenbridge.config.params import compose_config, validate


@pytest.fixture(scope="session")
def released_config() -> Config:
    return validate(compose_config(["experiment=imagenet_l"], CHECKOUT / "conf"))


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


def export(*options: str, model: str = "tiny", out: str = "out/tiny") -> str:
    """Run ``tokenbridge export``; the README that it wrote."""
    main(["export", model, *options, "--out", out])
    return Path(out, "README.md").read_text()


def refused(*options: str, **named: str) -> str:
    """Run ``tokenbridge export``, which fails; what it says."""
    with pytest.raises(SystemExit) as ending:
        export(*options, **named)
    return str(ending.value)
