"""Samples of a model as shards, balanced over classes. Sample i depends only on the seed and i."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokenbridge.base.chunks import Advance, Chunk, cut, make_chunks
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes
from tokenbridge.base.files import atomic_path
from tokenbridge.base.seeding import generator
from tokenbridge.base.threads import in_threads
from tokenbridge.config import GenerateConfig, LauncherConfig
from tokenbridge.images.decoding import encode_png
from tokenbridge.images.shards import write_manifest, write_shards
from tokenbridge.sampling.pipeline import TokenBridgePipeline

CHUNK = 250  # samples in one file; a file that is written survives a kill
GRID_ROWS = 10  # classes that a picture shows


def sample_label(index: int, num_classes: int) -> int:
    """Return the class of a sample. Classes take turns, so any number of samples is balanced."""
    return index % num_classes


def draw_samples(pipeline: TokenBridgePipeline, indices: list[int], seed: int, config: GenerateConfig) -> np.ndarray:
    """Draw the samples with the numbers ``indices``, uint8 [n, 3, H, W]."""
    labels = torch.tensor([sample_label(i, len(pipeline.class_names)) for i in indices])
    generators = [generator(seed, "sample", i) for i in indices]
    return pipeline.sample(labels, generators, config)


def sample_chunks(folder: Path, count: int) -> list[Chunk]:
    """Return the chunks of ``count`` samples. Each chunk's file holds uint8 images [n, 3, H, W]."""
    return cut(count, CHUNK, lambda index: folder / f"chunk-{index * CHUNK:08d}.npy")


def draw_chunks(
    pipeline: TokenBridgePipeline,
    folder: Path,
    seed: int,
    config: GenerateConfig,
    launcher: LauncherConfig,
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Draw the chunks that ``folder`` lacks; the processes share the work."""

    def draw(chunk: Chunk, advance: Advance) -> None:
        parts = []
        for batch in torch.arange(chunk.span.start, chunk.span.stop).split(launcher.batch_size):
            parts.append(draw_samples(pipeline, batch.tolist(), seed, config))
            advance(len(batch))
        with atomic_path(chunk.path) as target, target.open("wb") as file:
            np.save(file, np.concatenate(parts))

    make_chunks("generate", sample_chunks(folder, config.samples), draw, processes=processes, launcher=launcher)


def write_samples(
    folder: Path,
    chunks: list[Chunk],
    label_names: list[str],
    image_size: int,
    shard_size: int,
    drawn: Mapping[str, Any],
) -> None:
    """Write the images of ``chunks`` as the split ``samples``: PNG in shards, and a manifest.

    Args:
        drawn: how they were drawn (precision, batch size), for the manifest.
    """
    count = chunks[-1].span.stop

    def encoded() -> Iterator[bytes]:
        for chunk in chunks:
            yield from in_threads(encode_png, (Image.fromarray(i.transpose(1, 2, 0)) for i in np.load(chunk.path)))

    labels = [sample_label(i, len(label_names)) for i in range(count)]
    examples = ((png, f"{i:06d}.png", label) for i, (png, label) in enumerate(zip(encoded(), labels, strict=True)))
    folder.mkdir(exist_ok=True)
    shards = write_shards(folder, "samples", examples, label_names, shard_size, count)
    write_manifest(
        folder,
        name="samples",
        image_size=image_size,
        label_names=label_names,
        splits={"samples": shards},
        drawn=drawn,
    )


def grid_indices(num_classes: int, most: int, count: int) -> NDArray[np.int64]:
    """Return which of ``count`` samples a picture shows: a row for each of the first ten classes.

    A row has ``most`` samples, or fewer, if not every class has as many.
    """
    rows, columns = min(num_classes, GRID_ROWS, count), max(1, min(most, count // num_classes))
    return np.arange(rows)[:, None] + num_classes * np.arange(columns)
