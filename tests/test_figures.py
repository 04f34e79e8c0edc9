"""Figures are drawn for any number of dimensions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenbridge.figures import levels_figure, order_figure


@pytest.mark.parametrize("dimensions", [1, 5, 16])
def test_figures_are_pictures(dimensions: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    levels = np.linspace(-3, 3, 8)[None].repeat(dimensions, 0)
    levels_figure(generator.normal(size=(dimensions, 200)), levels).savefig(tmp_path / "levels.png")
    latents = generator.normal(size=(10, dimensions, 4, 4))
    order_figure(latents, np.ones(dimensions), np.arange(dimensions)).savefig(tmp_path / "order.png")
    for name in ("levels.png", "order.png"):
        assert Image.open(tmp_path / name).width > 200
