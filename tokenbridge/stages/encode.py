"""Stage ``encode``: images + VAE -> moments of the training and the validation images, shard by shard.

A rerun makes the missing shards only.
"""

from collections.abc import Iterator

import numpy as np
from diffusers import AutoencoderKL

from tokenbridge.arrays import row_shards, write_manifest, write_shard
from tokenbridge.chunks import Advance, Chunk, make_chunks
from tokenbridge.config import EncodeConfig
from tokenbridge.data import TRAIN, VALIDATION
from tokenbridge.data.shards import ImageShards
from tokenbridge.device import autocast
from tokenbridge.stages.job import Job, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.vae import encode_moments, load_vae

FOLDERS = {TRAIN: "moments", VALIDATION: "validation_moments"}  # of each split, in data/ and while work is in progress


def main() -> None:
    with stage_run("encode") as run:
        compute(run, work)
        for split, folder in FOLDERS.items():
            images = ImageShards(run.root / "data/images", split)
            labels = images.labels[: image_count(images, split, run.config.encode)]
            write_manifest(run.work / folder, labels, len(images.label_names))
            run.publish(run.work / folder, f"data/{folder}")


def image_count(images: ImageShards, split: str, config: EncodeConfig) -> int:
    """How many images of the split are encoded: ``encode.images`` limits the training images alone."""
    return min(len(images), config.images or len(images)) if split == TRAIN else len(images)


def work(job: Job) -> None:
    """Write every shard of both splits."""
    vae = load_vae(job.root / "models/vae").to(job.device)
    precision = job.precision(job.config.encode.precision)
    for split in FOLDERS:
        encode_split(job, split, vae, precision)


def encode_split(job: Job, split: str, vae: AutoencoderKL, precision: str) -> None:
    """Write the shards of one split; the processes share them."""
    images, folder = ImageShards(job.root / "data/images", split), job.work / FOLDERS[split]
    batch, flip = job.config.launcher.batch_size, job.config.encode.flip

    def moments(chunk: Chunk, advance: Advance) -> Iterator[np.ndarray]:
        for first in range(chunk.span.start, chunk.span.stop, batch):
            pixels, _ = images.read(first, min(first + batch, chunk.span.stop))
            views = [pixels, pixels[..., ::-1].copy()] if flip else [pixels]
            with autocast(job.device, precision):
                parts = [encode_moments(vae, view).cpu().numpy() for view in views]
            yield np.stack(parts, 1).astype(np.float16)
            advance(len(pixels))

    def encode(chunk: Chunk, advance: Advance) -> None:
        write_shard(folder, chunk.index, len(chunk.span), moments(chunk, advance))

    shards = row_shards(folder, image_count(images, split, job.config.encode))
    make_chunks(f"encode {split}", shards, encode, processes=job.processes, launcher=job.config.launcher)


if __name__ == "__main__":
    main()
