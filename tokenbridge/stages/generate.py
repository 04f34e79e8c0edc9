"""Stage ``generate@<model>``: model -> samples, in shards; a rerun makes the missing chunks only."""

import sys
from pathlib import Path

import numpy as np

from tokenbridge.data.shards import read_manifest
from tokenbridge.device import pick_device
from tokenbridge.evaluation.checks import check_counts
from tokenbridge.evaluation.inception import check_inception
from tokenbridge.generation import CHUNK, GRID_ROWS, draw_chunks, grid_indices, write_samples
from tokenbridge.pipeline import TokenBridgePipeline
from tokenbridge.plots import image_grid
from tokenbridge.stages.runtime import StageRun, stage_run


def main() -> None:
    name = sys.argv[1]
    with stage_run(f"generate@{name}") as run:
        _check(run)
        config, data = run.config.generate, run.config.data
        pipeline = TokenBridgePipeline.from_pretrained(run.root / "models" / name).to(pick_device(run.config.launcher))
        chunks = draw_chunks(pipeline, run.work, run.config.seed, config, run.config.launcher)
        names = pipeline.class_names
        write_samples(run.work / "samples", chunks, names, data.image_size, config.samples, data.shard_size)
        _write_grid(run, names, chunks)
        run.publish(run.work / "grid.png", f"reports/samples/{name}.png")
        run.publish(run.work / "samples", f"data/samples/{name}")


def _check(run: StageRun) -> None:
    """What evaluation will need: fails now rather than after sampling."""
    check_inception(run.config.evaluate)
    splits = read_manifest(run.root / "data/images")["splits"]
    counts = splits["train"]["count"], splits["test"]["count"]
    check_counts(run.config.evaluate, run.config.generate.samples, *counts)


def _write_grid(run: StageRun, label_names: list[str], chunks: list[Path]) -> None:
    config = run.config.generate
    wanted = grid_indices(len(label_names), config.grid_per_class, config.samples)
    images = np.stack([np.load(chunks[i // CHUNK], mmap_mode="r")[i % CHUNK] for i in wanted])
    image_grid(images, config.grid_per_class, label_names[:GRID_ROWS]).save(run.work / "grid.png")


if __name__ == "__main__":
    main()
