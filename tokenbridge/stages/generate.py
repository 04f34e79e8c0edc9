"""Stage ``generate@<model>``: model -> samples, in shards; a rerun makes the missing chunks only."""

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokenbridge.data.shards import read_manifest, write_manifest, write_shards
from tokenbridge.device import pick_device
from tokenbridge.evaluation.checks import check_counts
from tokenbridge.evaluation.inception import check_inception
from tokenbridge.files import atomic_path
from tokenbridge.pipeline import TokenBridgePipeline
from tokenbridge.plots import image_grid
from tokenbridge.progress import Progress
from tokenbridge.sampling import SamplingSettings
from tokenbridge.seeding import generator
from tokenbridge.stages.runtime import StageRun, stage_run

CHUNK = 250  # samples in one file, kept if the stage is killed


def sample_label(index: int, num_classes: int) -> int:
    """Classes in turn, so that any number of samples is balanced."""
    return index % num_classes


def main() -> None:
    name = sys.argv[1]
    with stage_run(f"generate@{name}") as run:
        _check(run)
        pipeline = TokenBridgePipeline.from_pretrained(run.root / "models" / name).to(pick_device(run.config.launcher))
        chunks = _generate(run, pipeline)
        labels = [sample_label(i, len(pipeline.class_names)) for i in range(run.config.generate.samples)]
        _write_samples(run, pipeline.class_names, chunks, labels)
        _write_grid(run, pipeline.class_names, chunks)
        run.publish(run.work / "grid.png", f"reports/samples/{name}.png")
        run.publish(run.work / "samples", f"data/samples/{name}")


def _check(run: StageRun) -> None:
    """What evaluation will need: fails now rather than after sampling."""
    check_inception(run.config.evaluate)
    splits = read_manifest(run.root / "data/images")["splits"]
    counts = splits["train"]["count"], splits["test"]["count"]
    check_counts(run.config.evaluate, run.config.generate.samples, *counts)


def _generate(run: StageRun, pipeline: TokenBridgePipeline) -> list[Path]:
    """Files of uint8 images [n, 3, H, W], sample after sample."""
    config = run.config.generate
    settings = SamplingSettings.from_config(config)

    def draw(indices: list[int]) -> np.ndarray:
        labels = torch.tensor([sample_label(i, len(pipeline.class_names)) for i in indices])
        return pipeline.sample(labels, [generator(run.config.seed, "sample", i) for i in indices], settings)

    starts = range(0, config.samples, CHUNK)
    paths = [run.work / f"chunk-{start:08d}.npy" for start in starts]
    done = sum(min(CHUNK, config.samples - start) for start, path in zip(starts, paths, strict=True) if path.exists())
    progress = Progress("generate", config.samples, every=run.config.launcher.log_seconds, done=done)
    for start, path in zip(starts, paths, strict=True):
        if path.exists():
            continue
        indices = torch.arange(start, min(start + CHUNK, config.samples))
        images = np.concatenate([draw(batch.tolist()) for batch in indices.split(run.config.launcher.batch_size)])
        with atomic_path(path) as target, target.open("wb") as file:
            np.save(file, images)
        progress.advance(len(images))
    return paths


def _write_samples(run: StageRun, label_names: list[str], chunks: list[Path], labels: list[int]) -> None:
    def encoded() -> Iterator[bytes]:
        for chunk in chunks:
            for image in np.load(chunk):
                buffer = BytesIO()
                Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
                yield buffer.getvalue()

    examples = ((png, f"{i:06d}.png", label) for i, (png, label) in enumerate(zip(encoded(), labels, strict=True)))
    folder, data = run.work / "samples", run.config.data
    folder.mkdir(exist_ok=True)
    shards = write_shards(folder, "samples", examples, label_names, data.shard_size, len(labels))
    write_manifest(
        folder, name="samples", image_size=data.image_size, label_names=label_names, splits={"samples": shards}
    )


def _write_grid(run: StageRun, label_names: list[str], chunks: list[Path]) -> None:
    """One row for each of the first ten classes."""
    rows, columns = min(len(label_names), 10), run.config.generate.grid_per_class
    wanted = [row + len(label_names) * column for row in range(rows) for column in range(columns)]
    wanted = [index for index in wanted if index < run.config.generate.samples]
    images = np.stack([np.load(chunks[i // CHUNK], mmap_mode="r")[i % CHUNK] for i in wanted])
    image_grid(images, columns, label_names[:rows]).save(run.work / "grid.png")


if __name__ == "__main__":
    main()
