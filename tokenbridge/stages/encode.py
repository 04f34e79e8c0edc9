"""Stage ``encode``: images + VAE -> moments, shard by shard; a rerun makes the missing shards only."""

from collections.abc import Iterator

import numpy as np

from tokenbridge.arrays import row_shards, write_manifest, write_shard
from tokenbridge.chunks import Advance, Chunk, make_chunks
from tokenbridge.data.shards import ImageShards
from tokenbridge.stages.job import Job, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.vae import encode_moments, load_vae

MOMENTS = "moments"  # folder of the shards, while work is in progress


def main() -> None:
    with stage_run("encode") as run:
        compute(run, work)
        images = ImageShards(run.root / "data/images", "train")
        write_manifest(run.work / MOMENTS, images.labels[: run.config.encode.images], len(images.label_names))
        run.publish(run.work / MOMENTS, "data/moments")


def work(job: Job) -> None:
    """Write every shard."""
    images = ImageShards(job.root / "data/images", "train")
    vae = load_vae(job.root / "models/vae").to(job.device)
    batch, flip = job.config.launcher.batch_size, job.config.encode.flip

    def moments(chunk: Chunk, advance: Advance) -> Iterator[np.ndarray]:
        for first in range(chunk.span.start, chunk.span.stop, batch):
            pixels, _ = images.read(first, min(first + batch, chunk.span.stop))
            views = [pixels, pixels[..., ::-1].copy()] if flip else [pixels]
            yield np.stack([encode_moments(vae, view).cpu().numpy().astype(np.float16) for view in views], 1)
            advance(len(pixels))

    def encode(chunk: Chunk, advance: Advance) -> None:
        write_shard(job.work / MOMENTS, chunk.index, len(chunk.span), moments(chunk, advance))

    count = len(images.labels[: job.config.encode.images])
    shards = row_shards(job.work / MOMENTS, count)
    make_chunks("encode", shards, encode, processes=job.processes, launcher=job.config.launcher)


if __name__ == "__main__":
    main()
