"""What tests on one GPU share. Where there is none, the same tests run on the CPU, at sizes that take seconds.

`make gpu-check` runs this folder without tests/conftest.py, so that few packages are needed: see docs/gpu.md. Tests
record what they measure with ``record_property``, and the page shows it.
"""

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.support.checkout import CHECKOUT
from tests.support.small_data import write_moments
from tokenbridge.base.checks import AUTO
from tokenbridge.base.device import best_device, make_deterministic, resolve_precision
from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.config import Config
from tokenbridge.config.params import compose_config, validate
from tokenbridge.model import layers
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.parallel import compiles
from tokenbridge.training.trainer import Trainer

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the tests of determinism; cuBLAS reads it once

# a slice of L: its width and its shapes, but few blocks
SLICE = ["encoder_depth=2", "decoder_depth=2", "head_depth=1"]
ANY_BATCH = "train.mask_group_size=null"  # the released groups of 64 images would not fit on every card
NARROW = ["width=64", "heads=4", "head_width=64", "head_heads=2", "buffer_size=4"]  # for CPUs

MakeTrainer = Callable[..., Trainer]
"""A function that returns a new training of the slice: name of its folder, dropout, settings of the launcher."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the tests' work."""

    large: list[str]  # overrides of models.large
    side: int  # positions along one side of an image
    images: int  # in a batch of the slice
    rows: int  # sequences that attention gets at once
    pixels: int  # along one side of an image for the VAE
    batch: int  # images that the VAE gets at once
    steps: int  # timed


GPU = Sizes(large=[], side=16, images=16, rows=20_000, pixels=256, batch=250, steps=10)
CPU = Sizes(large=[*SLICE, *NARROW], side=4, images=4, rows=300, pixels=32, batch=3, steps=1)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return best_device()


@pytest.fixture(scope="session")
def sizes(device: torch.device) -> Sizes:
    return GPU if device.type == "cuda" else CPU


@pytest.fixture(autouse=True)
def as_on_a_gpu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the branch of GPUs on CPUs, too; trace without compiling there; measure each test's own memory."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        monkeypatch.setattr(layers, "UNFUSED", "")
        monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))


@pytest.fixture
def deterministic() -> Iterator[None]:
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def group(device: torch.device) -> Iterator[None]:
    """A process group of this process alone, over NCCL and gloo."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def composed(device: torch.device, *overrides: str) -> Config:
    """The experiment with L, in the device's own precision."""
    precision = f"train.precision={resolve_precision(AUTO, device)}"
    return validate(compose_config(["experiment=imagenet_l", ANY_BATCH, precision, *overrides], CHECKOUT / "conf"))


def large(*settings: str) -> list[str]:
    """Overrides of the settings of model L."""
    return [f"models.large.{setting}" for setting in settings]


@pytest.fixture(scope="session")
def data(device: torch.device, sizes: Sizes, tmp_path_factory: pytest.TempPathFactory) -> FreshTokens:
    """Tokens of random moments, in the shapes of ImageNet's."""
    folder, random = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(1)
    latents = 4.3 * torch.randn(64, 16, sizes.side, sizes.side, generator=random)
    quantizer = fit_quantizer(latents, composed(device).quantizer)
    return FreshTokens(write_moments(folder / "moments", latents), quantizer)


def train_on(data: FreshTokens, config: Config, folder: Path, device: torch.device) -> Trainer:
    """A new training of model L on ``device``, on this process alone."""
    by_default = replace(config.launcher, compile=None)
    if config.launcher.compile and device.type == "cuda" and not compiles(by_default, device):
        pytest.skip("Triton needs a C compiler, and there is none")
    folder.mkdir(exist_ok=True)
    model = config.models["large"]
    return Trainer(model, data, data.quantizer.to(device), folder, config.launcher, device, SINGLE_PROCESS)


@pytest.fixture
def make_trainer(data: FreshTokens, device: torch.device, sizes: Sizes, tmp_path: Path) -> MakeTrainer:
    def make(name: str = "training", dropout: float = 0.0, **launcher: bool) -> Trainer:
        changes = [f"train.batch_size={sizes.images}", *large(f"dropout={dropout}", *SLICE, *sizes.large)]
        changes += ["launcher.compile=false", "train.epochs=100", "train.warmup_epochs=1"]
        config = composed(device, *changes)
        config = replace(config, launcher=replace(config.launcher, **launcher))
        return train_on(data, config, tmp_path / name, device)

    return make
