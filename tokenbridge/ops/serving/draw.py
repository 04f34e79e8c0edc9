"""A picture of samples from a trained pipeline, for the command line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tokenbridge.base.device import best_device
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path
from tokenbridge.base.image_grid import image_grid
from tokenbridge.base.progress import Progress
from tokenbridge.base.seeding import generator
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.sampler import SamplingSettings

BATCH = 250  # images drawn at once: bounds memory


def draw_grid(
    model: Path,
    classes: Sequence[str] | None,
    count: int,
    out: Path,
    *,
    seed: int,
    settings: SamplingSettings,
) -> None:
    """Write ``count`` images of each class to ``out``: one row for each class, or a square for a single class.

    Raises:
        UserError: with a message that says what to change.
    """
    if count < 1:
        raise UserError(f"--count is {count}: at least one image is needed")
    pipeline = TokenBridgePipeline.from_pretrained(model).to(best_device())
    names = pipeline.class_names
    chosen = [pipeline.label_index(label) for label in classes] if classes else list(range(len(names)))
    labels = torch.tensor(chosen).repeat_interleave(count)
    images = _sample(pipeline, labels, seed, settings)
    columns = count if len(chosen) > 1 else int(np.ceil(np.sqrt(count)))
    row_names = [names[label] for label in chosen] if len(chosen) > 1 else []
    with atomic_path(out) as target:
        image_grid(images, columns, row_names).save(target, "PNG")
    print(f"{out}: {len(labels)} images of {', '.join(names[label] for label in chosen)}")


def _sample(pipeline: TokenBridgePipeline, labels: torch.Tensor, seed: int, settings: SamplingSettings) -> np.ndarray:
    batches = torch.arange(len(labels)).split(BATCH)
    steps = settings.steps_for(pipeline.transformer.positions)
    progress = Progress("sample", len(batches) * steps, "steps", every=1.0)
    parts = []
    for batch in batches:
        generators = [generator(seed, "sample", index) for index in batch.tolist()]
        parts.append(pipeline.sample(labels[batch], generators, settings, lambda *_: progress.advance(1)))
    return np.concatenate(parts)
