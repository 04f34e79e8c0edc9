"""Pictures of a promotion: samples of both models side by side, and the resampled differences."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from tokenbridge.base.image_grid import FONT_SIZE, GAP, image_grid
from tokenbridge.images.shards import ImageShards
from tokenbridge.ops.promotion.comparison import Comparison, Difference
from tokenbridge.sampling.samples import GRID_ROWS, grid_indices

BINS = 30


def side_by_side(models: Mapping[str, ImageShards], columns: int) -> Image.Image:
    """Draw the grids of ``models`` (title -> samples) side by side, with the same classes and seeds in each."""
    grids = {title: sample_grid(samples, columns) for title, samples in models.items()}
    head = 2 * FONT_SIZE
    width = sum(grid.width + 8 * GAP for grid in grids.values())
    sheet = Image.new("RGB", (width, head + max(grid.height for grid in grids.values())), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for title, grid in grids.items():
        draw.text((left + GAP, head // 2), title, fill="black", font=ImageFont.load_default(FONT_SIZE), anchor="lm")
        sheet.paste(grid, (left, head))
        left += grid.width + 8 * GAP
    return sheet


def sample_grid(samples: ImageShards, columns: int) -> Image.Image:
    """Draw a grid of samples with a row for each of the first classes."""
    wanted = grid_indices(len(samples.label_names), columns, len(samples))
    images = np.concatenate([samples.read(index, index + 1)[0] for index in wanted])
    return image_grid(images, columns, samples.label_names[:GRID_ROWS])


def differences_figure(found: Comparison) -> Figure:
    """Draw histograms of the resampled differences, candidate minus champion, with interval and zero."""
    panels = {"Fréchet distance": found.frechet, "KID": found.kid, "class accuracy": found.accuracy}
    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained", dpi=110)
    for axis, (name, difference) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        _histogram(axis, name, difference)
    figure.suptitle(f"candidate minus champion, {found.resamples} resamples; dashed: no difference", fontsize=10)
    return figure


def _histogram(axis, name: str, difference: Difference) -> None:  # type: ignore[no-untyped-def]
    axis.hist(difference.resampled, bins=BINS, color="#7aa6c2")
    axis.axvspan(difference.low, difference.high, color="#7aa6c2", alpha=0.25)
    axis.axvline(difference.observed, color="#c0392b")
    axis.axvline(0, color="#888888", linestyle="--")
    axis.set_title(name, fontsize=9)
    axis.set_yticks([])
