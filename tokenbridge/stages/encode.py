"""Stage ``encode``: images + VAE -> moments, shard by shard; a rerun makes the missing shards only."""

import numpy as np

from tokenbridge.data.shards import ImageShards
from tokenbridge.device import pick_device
from tokenbridge.files import atomic_path
from tokenbridge.moments import shard_name, write_manifest
from tokenbridge.progress import Progress
from tokenbridge.stages.runtime import StageRun, stage_run
from tokenbridge.vae import encode_moments, load_vae

SHARD_IMAGES = 5000


def main() -> None:
    with stage_run("encode") as run:
        images = ImageShards(run.root / "data/images", "train")
        folder = run.work / "moments"
        folder.mkdir(exist_ok=True)
        starts = range(0, len(images), SHARD_IMAGES)
        missing = [i for i in range(len(starts)) if not (folder / shard_name(i)).exists()]
        _encode_shards(run, images, [(i, starts[i]) for i in missing])
        write_manifest(folder, images.labels, len(starts), len(images.label_names))
        run.publish(folder, "data/moments")


def _encode_shards(run: StageRun, images: ImageShards, shards: list[tuple[int, int]]) -> None:
    vae = load_vae(run.root / "models/vae").to(pick_device(run.config.launcher))
    batch, flip = run.config.launcher.batch_size, run.config.encode.flip
    done = len(images) - sum(min(SHARD_IMAGES, len(images) - start) for _, start in shards)
    progress = Progress("encode", len(images), every=run.config.launcher.log_seconds, done=done)
    for index, start in shards:
        stop = min(start + SHARD_IMAGES, len(images))
        parts = []
        for first in range(start, stop, batch):
            pixels, _ = images.read(first, min(first + batch, stop))
            views = [pixels, pixels[..., ::-1].copy()] if flip else [pixels]
            parts.append(np.stack([encode_moments(vae, view).cpu().numpy().astype(np.float16) for view in views], 1))
            progress.advance(len(pixels))
        with atomic_path(run.work / "moments" / shard_name(index)) as target, target.open("wb") as file:
            np.save(file, np.concatenate(parts))


if __name__ == "__main__":
    main()
