"""The decoded images of a split as arrays on disk, so that trainings of many epochs need neither time nor memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenbridge.base.arrays import LabelledArrays, row_shards, write_manifest, write_shard
from tokenbridge.base.files import clear_scratch
from tokenbridge.base.progress import Progress
from tokenbridge.images.shards import ImageShards

READ_TOGETHER = 100  # images in memory at full size

Pixels = NDArray[np.uint8]


def decoded(images: ImageShards, change: Callable[[Pixels], Pixels], span: range) -> Iterator[Pixels]:
    """Yield ``change`` of the images of ``span``, uint8 [n, 3, H, W], a few at a time."""
    for start in range(span.start, span.stop, READ_TOGETHER):
        yield change(images.read(start, min(start + READ_TOGETHER, span.stop))[0])


def decode_to_disk(
    images: ImageShards, folder: Path, stage: str, change: Callable[[Pixels], Pixels], log_seconds: float
) -> LabelledArrays:
    """Write ``change`` of every image to ``folder``, and return the arrays there. A rerun writes only missing files.

    The files take N * 3 * H * W bytes for N changed images.

    Args:
        stage: the stage that works in ``folder``; errors name it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_scratch(folder)
    shards = row_shards(folder, len(images))
    missing = [shard for shard in shards if not shard.path.exists()]
    progress = Progress("decode", len(images), every=log_seconds, done=len(images) - sum(len(s.span) for s in missing))
    for shard in missing:
        write_shard(folder, shard.index, len(shard.span), decoded(images, change, shard.span))
        progress.advance(len(shard.span))
    write_manifest(folder, images.labels, len(images.label_names))
    return LabelledArrays(folder, stage)
