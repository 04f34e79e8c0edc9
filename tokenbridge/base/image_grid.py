"""Grids of images as one picture."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP = 2  # pixels between images
MIN_SIDE = 64  # pixels; smaller images are enlarged by a whole factor, without smoothing
FONT_SIZE = 16


def image_grid(images: NDArray[np.uint8], columns: int, labels: Sequence[str] = ()) -> Image.Image:
    """Draw images uint8 [N, 3, H, W] row by row on white, with ``labels`` at the left of the rows."""
    scale = max(1, MIN_SIDE // images.shape[-1])
    height, width = (side * scale + GAP for side in images.shape[-2:])
    font = ImageFont.load_default(FONT_SIZE)
    margin = max((round(font.getlength(label)) + 3 * GAP for label in labels), default=0)
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (margin + columns * width - GAP, rows * height - GAP), "white")
    for index, pixels in enumerate(images):
        row, column = divmod(index, columns)
        tile = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        tile = tile.resize((width - GAP, height - GAP), Image.Resampling.NEAREST)
        grid.paste(tile, (margin + column * width, row * height))
    draw = ImageDraw.Draw(grid)
    for row, label in enumerate(labels):
        draw.text((GAP, row * height + height // 2), label, fill="black", font=font, anchor="lm")
    return grid
