"""A picture of samples from a trained pipeline."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from tokenbridge.base.device import best_device
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path, check_target
from tokenbridge.base.image_grid import image_grid
from tokenbridge.base.progress import Progress
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import SamplingSettings
from tokenbridge.sampling.pipeline import TokenBridgePipeline

logger = logging.getLogger(__name__)

BATCH = 250  # images drawn at once: bounds memory
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
QUALITY = 95  # of JPEG and WebP


def write_grid(
    model: Path, classes: Sequence[str] | None, count: int, out: Path, *, seed: int, settings: SamplingSettings
) -> None:
    """Write the picture that ``draw_grid`` draws with the pipeline in ``model``.

    Raises:
        UserError: with a message that says what to change.
    """
    check_picture(out)
    pipeline = TokenBridgePipeline.from_pretrained(model).to(best_device())
    save_picture(draw_grid(pipeline, classes, count, seed=seed, settings=settings), out)
    names = [pipeline.class_names[label] for label in _labels(pipeline, classes)]
    logger.info(f"{out}: {count * len(names)} images of {', '.join(names)}")


def check_picture(out: Path) -> None:
    """Check, before any work, that a picture can be written to ``out``.

    Raises:
        UserError: if not, or if no format has its suffix.
    """
    check_target(out)
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"{out} is no name of a picture: let it end with {', '.join(FORMATS)}")


def save_picture(picture: Image, out: Path) -> None:
    """Write a picture in the format of the suffix of ``out``."""
    with atomic_path(out) as target:
        picture.save(target, FORMATS[out.suffix.lower()], quality=QUALITY)


def draw_grid(
    pipeline: TokenBridgePipeline,
    classes: Sequence[int | str] | None,
    count: int,
    *,
    seed: int,
    settings: SamplingSettings,
) -> Image:
    """Return a picture of ``count`` images of each class: one row for each class, or a square for a single class.

    Args:
        classes: names or indices; None: all.

    Raises:
        UserError: with a message that says what to change.
    """
    if count < 1:
        raise UserError(f"count is {count}: at least one image of each class is needed")
    chosen = _labels(pipeline, classes)
    images = _sample(pipeline, torch.tensor(chosen).repeat_interleave(count), seed, settings)
    if len(chosen) == 1:
        return image_grid(images, math.ceil(math.sqrt(count)))
    return image_grid(images, count, [pipeline.class_names[label] for label in chosen])


def _labels(pipeline: TokenBridgePipeline, classes: Sequence[int | str] | None) -> list[int]:
    return pipeline.label_indices(range(len(pipeline.class_names)) if classes is None else classes)


def _sample(pipeline: TokenBridgePipeline, labels: torch.Tensor, seed: int, settings: SamplingSettings) -> np.ndarray:
    batches = torch.arange(len(labels)).split(BATCH)
    steps = settings.steps_for(pipeline.transformer.trunk, pipeline.transformer.units)
    progress = Progress("sample", len(batches) * steps, "steps", every=1.0)
    parts = []
    for batch in batches:
        generators = [generator(seed, "sample", index) for index in batch.tolist()]
        parts.append(pipeline.sample(labels[batch], generators, settings, lambda *_: progress.advance(1)))
    return np.concatenate(parts)
