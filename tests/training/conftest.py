"""Small data, and trainings on them in this process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small_data import write_moments
from tests.support.small_model import LAUNCHER, MODEL, RECIPE, Silent
from tokenbridge.config import LauncherConfig
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.training.datasets import FreshTokens, TrainingData
from tokenbridge.training.trainer import DrawGrid, Trained, train


@pytest.fixture
def data(tmp_path: Path, vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer) -> FreshTokens:
    return FreshTokens(write_moments(tmp_path / "moments", vae_latents), quantizer)


def run(
    folder: Path,
    data: FreshTokens,
    trained_on: TrainingData | None = None,
    *,
    launcher: LauncherConfig = LAUNCHER,
    tracker: Silent | None = None,
    draw_grid: DrawGrid | None = None,
    dropout: float = 0.0,
    **recipe: Any,
) -> Trained:
    """Train the small model on ``trained_on`` or on ``data``, which it is validated on, in steps of 8 images."""
    folder.mkdir(exist_ok=True)
    return train(
        replace(MODEL, dropout=dropout, train=replace(RECIPE, **recipe)),
        trained_on or data,
        data,
        data.quantizer,
        folder=folder,
        launcher=launcher,
        tracker=tracker or Silent(),
        device=torch.device("cpu"),
        draw_grid=draw_grid,
    )
