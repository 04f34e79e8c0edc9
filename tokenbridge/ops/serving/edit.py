"""A picture of edits by a trained pipeline, for the command line."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tokenbridge.base.device import best_device
from tokenbridge.base.errors import UserError
from tokenbridge.base.image_grid import image_grid
from tokenbridge.base.progress import Progress
from tokenbridge.base.seeding import generator
from tokenbridge.config.data import ImageLimits
from tokenbridge.config.model import SamplingSettings
from tokenbridge.images.decoding import check_bytes, to_rgb, upright, whole_image
from tokenbridge.ops.serving.draw import check_picture, save_picture
from tokenbridge.sampling.pipeline import TokenBridgePipeline

logger = logging.getLogger(__name__)

COVER_GREY = 127  # the grey that covers the parts that are not kept


def draw_edits(
    model: Path,
    images: Sequence[Path],
    keep: Path | str,
    label: str,
    count: int,
    out: Path,
    *,
    seed: int,
    settings: SamplingSettings,
) -> None:
    """Write one row for each image to ``out``: the image, the part that is kept, and ``count`` edits.

    Args:
        keep: a side, or the file of a mask (see ``keep_mask``).
        label: class of the edits.

    Raises:
        UserError: with a message that says what to change.
    """
    if count < 1:
        raise UserError(f"--count is {count}: at least one edit is needed")
    check_picture(out)
    pipeline = TokenBridgePipeline.from_pretrained(model).to(best_device())
    index = pipeline.label_index(label)
    originals = np.stack([read_fitted(path, "RGB", pipeline.image_size) for path in images]).transpose(0, 3, 1, 2)
    transformer = pipeline.transformer
    kept = keep_mask(keep, (transformer.config.grid_height, transformer.config.grid_width))
    drawn = int((~kept).sum()) * transformer.units // transformer.positions
    steps = settings.steps_for(transformer.trunk, drawn)
    progress = Progress("edit", len(images) * steps, "steps", every=1.0)
    rows = []
    for row, original in enumerate(originals):
        tokens = pipeline.encode_images(original[None]).expand(count, -1, -1)
        generators = [generator(seed, "edit", row, i) for i in range(count)]
        labels = torch.full((count,), index)
        edits = pipeline.sample(labels, generators, settings, lambda *_: progress.advance(1), tokens, kept)
        rows.append(np.concatenate([original[None], cover(original, kept)[None], edits]))
    save_picture(image_grid(np.concatenate(rows), count + 2), out)
    logger.info(f"{out}: {count} edits of each of {len(images)} images as {pipeline.class_names[index]}")


def keep_mask(keep: Path | str, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which positions [h, w] are kept.

    Args:
        keep: left, right, top or bottom half; or the file of a mask, white where the image is drawn again. A position
            is kept if the mask leaves most of it black.

    Raises:
        UserError: if there is no such side, or the mask cannot be read.
    """
    if isinstance(keep, Path):
        return read_fitted(keep, "L", grid) < 128
    (height, width), (rows, columns) = grid, np.indices(grid)
    sides = {
        "left": columns < width // 2,
        "right": columns >= width - width // 2,
        "top": rows < height // 2,
        "bottom": rows >= height - height // 2,
    }
    if keep not in sides:
        raise UserError(f"--keep is {keep!r}: choose one of {', '.join(sides)}")
    return sides[keep]


def read_fitted(path: Path, mode: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read an image file as pixels [height, width] or [height, width, 3]: upright, cut to the shape and resized.

    Raises:
        UserError: if the file cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no image file {path}: check the path")
    limits, (height, width) = ImageLimits(), size
    check_bytes(path.stat().st_size, str(path), limits)
    method = Image.Resampling.BOX if mode == "L" else Image.Resampling.BICUBIC
    with whole_image(path.read_bytes(), str(path), limits) as (image, _):
        return np.asarray(ImageOps.fit(to_rgb(upright(image)).convert(mode), (width, height), method))


def cover(image: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the image [3, H, W], grey at the positions [h, w] that are not kept."""
    height, width = image.shape[1] // kept.shape[0], image.shape[2] // kept.shape[1]
    return np.where(kept.repeat(height, 0).repeat(width, 1), image, np.uint8(COVER_GREY))
