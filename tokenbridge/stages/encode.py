"""Stage ``encode``: images + VAE -> moments of the training and the validation images, shard by shard.

A rerun makes only the missing shards.
"""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from tokenbridge.base.arrays import row_shards, write_manifest, write_shard
from tokenbridge.base.chunks import Advance, Chunk, make_chunks
from tokenbridge.base.device import autocast
from tokenbridge.base.finite import check_finite
from tokenbridge.config import EncodeConfig
from tokenbridge.images import TRAIN, VALIDATION
from tokenbridge.images.shards import ImageShards
from tokenbridge.images.splits import balanced_subset
from tokenbridge.stages.context import StageContext, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.vae.autoencoder import encode_moments, load_vae

FOLDERS = {TRAIN: "moments", VALIDATION: "validation_moments"}  # split -> its folder, in data/ and in the work folder


def main() -> None:
    with stage_run("encode") as run:
        compute(run, work)
        for split, folder in FOLDERS.items():
            images = ImageShards(run.root / "data/images", split)
            labels = images.labels[encoded_images(images, split, run.config.encode)]
            write_manifest(run.work / folder, labels, len(images.label_names))
            run.publish(run.work / folder, f"data/{folder}")


def encoded_images(images: ImageShards, split: str, config: EncodeConfig) -> NDArray[np.int64]:
    """Return the indices of the images to encode. ``encode.images`` limits only the training images."""
    return balanced_subset(images.labels, config.images if split == TRAIN else None)


def work(context: StageContext) -> None:
    """Write every shard of both splits."""
    vae = load_vae(context.root / "models/vae").to(context.device)
    precision = context.precision(context.config.encode.precision)
    for split in FOLDERS:
        encode_split(context, split, vae, precision)


def encode_split(context: StageContext, split: str, vae: AutoencoderKL, precision: str) -> None:
    """Write the shards of one split; the processes share the work."""
    images, folder = ImageShards(context.root / "data/images", split), context.work / FOLDERS[split]
    indices = encoded_images(images, split, context.config.encode)
    batch, flip = context.config.launcher.batch_size, context.config.encode.flip

    def moments(chunk: Chunk, advance: Advance) -> Iterator[np.ndarray]:
        for first in range(chunk.span.start, chunk.span.stop, batch):
            pixels, _ = images.take(indices[first : min(first + batch, chunk.span.stop)])
            views = [pixels, pixels[..., ::-1].copy()] if flip else [pixels]
            with autocast(context.device, precision):
                parts = [encode_moments(vae, view).cpu().numpy() for view in views]
            stored = np.stack(parts, 1).astype(np.float16)
            check_finite("the moments, stored as float16,", torch.from_numpy(stored), vae)
            yield stored
            advance(len(pixels))

    def encode(chunk: Chunk, advance: Advance) -> None:
        write_shard(folder, chunk.index, len(chunk.span), moments(chunk, advance))

    shards = row_shards(folder, len(indices))
    make_chunks(f"encode {split}", shards, encode, processes=context.processes, launcher=context.config.launcher)
