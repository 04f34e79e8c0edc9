"""Stage ``encode``: images + VAE -> moments, shard by shard; a rerun makes the missing shards only."""

from collections.abc import Iterator

import numpy as np

from tokenbridge.arrays import missing_shards, write_manifest, write_shard
from tokenbridge.data.shards import ImageShards
from tokenbridge.device import pick_device
from tokenbridge.progress import Progress
from tokenbridge.stages.runtime import StageRun, stage_run
from tokenbridge.vae import encode_moments, load_vae


def main() -> None:
    with stage_run("encode") as run:
        images = ImageShards(run.root / "data/images", "train")
        labels = images.labels[: run.config.encode.images]
        (run.work / "moments").mkdir(exist_ok=True)
        _encode_shards(run, images, len(labels))
        write_manifest(run.work / "moments", labels, len(images.label_names))
        run.publish(run.work / "moments", "data/moments")


def _encode_shards(run: StageRun, images: ImageShards, count: int) -> None:
    vae = load_vae(run.root / "models/vae").to(pick_device(run.config.launcher))
    batch, flip = run.config.launcher.batch_size, run.config.encode.flip
    missing = missing_shards(run.work / "moments", count)
    done = count - sum(len(span) for span in missing.values())
    progress = Progress("encode", count, every=run.config.launcher.log_seconds, done=done)

    def moments(span: range) -> Iterator[np.ndarray]:
        for first in range(span.start, span.stop, batch):
            pixels, _ = images.read(first, min(first + batch, span.stop))
            views = [pixels, pixels[..., ::-1].copy()] if flip else [pixels]
            yield np.stack([encode_moments(vae, view).cpu().numpy().astype(np.float16) for view in views], 1)
            progress.advance(len(pixels))

    for index, span in missing.items():
        write_shard(run.work / "moments", index, len(span), moments(span))


if __name__ == "__main__":
    main()
