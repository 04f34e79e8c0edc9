"""A folder in which stages can run alone."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.support.checkout import CHECKOUT
from tests.support.dvc import init_dvc
from tokenbridge.base.checks import FP32
from tokenbridge.base.device import autocast as device_autocast
from tokenbridge.config.params import PARAMS_FILE, compose_config
from tokenbridge.stages import encode, reconstruct
from tokenbridge.stages.runtime import PARENT_VARIABLE


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's stages and settings, where no syncer runs."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((CHECKOUT / name).read_bytes())
    init_dvc(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PARENT_VARIABLE, "parent")
    return tmp_path


@pytest.fixture
def autocasts(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The precisions in which encode and reconstruct let the VAE compute. It computes in float32 here."""
    asked: set[str] = set()

    def autocast(device: torch.device, precision: str) -> torch.autocast:
        asked.add(precision)
        return device_autocast(device, FP32)

    for stage in (encode, reconstruct):
        monkeypatch.setattr(stage, "autocast", autocast)
    return asked


def configure(repository: Path, *overrides: str) -> None:
    """Write a params.yaml of conf/ with these overrides."""
    OmegaConf.save(compose_config(overrides, CHECKOUT / "conf"), repository / PARAMS_FILE)
