"""Figures are drawn for any number of dimensions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenbridge.base.figures import levels_figure, order_figure, study_figure


@pytest.mark.parametrize("dimensions", [1, 5, 16])
def test_figures_are_pictures(dimensions: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    levels = np.linspace(-3, 3, 8)[None].repeat(dimensions, 0)
    levels_figure(generator.normal(size=(dimensions, 200)), levels).savefig(tmp_path / "levels.png")
    latents = generator.normal(size=(10, dimensions, 4, 4))
    order_figure(latents, np.ones(dimensions), np.arange(dimensions)).savefig(tmp_path / "order.png")
    for name in ("levels.png", "order.png"):
        assert Image.open(tmp_path / name).width > 200


@pytest.mark.parametrize("studies", [{"levels": [8, 16]}, {"levels": [8], "range": [2.0, 5.0], "family": ["uniform"]}])
def test_a_study_has_a_panel_for_each_metric_and_setting(studies: dict[str, list[object]], tmp_path: Path) -> None:
    metrics = {"psnr": 26.0, "fd": 3.5}
    figure = study_figure({name: [(value, metrics) for value in values] for name, values in studies.items()}, metrics)
    assert len(figure.axes) == len(metrics) * len(studies)
    figure.savefig(tmp_path / "study.png")
    assert Image.open(tmp_path / "study.png").height > 200
