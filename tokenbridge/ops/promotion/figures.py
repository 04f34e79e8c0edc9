"""Pictures of a promotion: samples of both models side by side, and the resampled differences."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from tokenbridge.base.image_grid import FONT_SIZE, GAP
from tokenbridge.ops.promotion.comparison import Difference

BINS = 30


def side_by_side(pictures: Mapping[str, Path]) -> Image.Image:
    """Put the grids of samples (title -> picture) side by side; they have the same classes and seeds."""
    grids = {title: Image.open(path) for title, path in pictures.items()}
    head = 2 * FONT_SIZE
    width = sum(grid.width + 8 * GAP for grid in grids.values())
    sheet = Image.new("RGB", (width, head + max(grid.height for grid in grids.values())), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for title, grid in grids.items():
        draw.text((left + GAP, head // 2), title, fill="black", font=ImageFont.load_default(FONT_SIZE), anchor="lm")
        sheet.paste(grid, (left, head))
        left += grid.width + 8 * GAP
    return sheet


def differences_figure(found: Mapping[str, Difference]) -> Figure:
    """Draw histograms of the resampled differences, candidate minus champion, with interval and zero."""
    figure = Figure(figsize=(4 * len(found), 3), layout="constrained", dpi=110)
    for axis, (name, difference) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        axis.hist(difference.resampled, bins=BINS, color="#7aa6c2")
        axis.axvspan(difference.low, difference.high, color="#7aa6c2", alpha=0.25)
        axis.axvline(difference.observed, color="#c0392b")
        axis.axvline(0, color="#888888", linestyle="--")
        axis.set_title(name, fontsize=9)
        axis.set_yticks([])
    resamples = max(len(difference.resampled) for difference in found.values())
    figure.suptitle(f"candidate minus champion, {resamples} resamples; dashed: no difference", fontsize=10)
    return figure
