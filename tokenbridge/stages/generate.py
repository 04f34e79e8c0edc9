"""Stage ``generate@<model>``: model -> samples, in shards. A rerun makes only the missing chunks."""

from pathlib import Path

import numpy as np

from tokenbridge.base.image_grid import image_grid
from tokenbridge.config import Config, GenerateConfig
from tokenbridge.evaluation.checks import check_counts
from tokenbridge.evaluation.weight_files import check_networks
from tokenbridge.images.shards import image_counts, read_manifest
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.samples import CHUNK, draw_chunks, grid_indices, sample_chunks, write_samples
from tokenbridge.stages.context import StageContext, compute
from tokenbridge.stages.runtime import stage_run


def main(name: str) -> None:
    with stage_run(f"generate@{name}") as run:
        check(run.config, run.root)
        compute(run, work)
        run.publish(run.work / "grid.png", f"reports/samples/{name}.png")
        run.publish(run.work / "samples", f"data/samples/{name}")


def work(context: StageContext) -> None:
    """Draw every sample. The first process then writes the shards and the picture."""
    config = context.config
    pipeline = TokenBridgePipeline.from_pretrained(context.root / "models" / context.item).to(context.device)
    drawn, names = context.work / "drawn", pipeline.class_names
    precision = pipeline.precision = context.precision(config.generate.precision)
    draw_chunks(pipeline, drawn, config.seed, config.generate, config.launcher, context.processes)
    if context.processes.first:
        chunks, data = sample_chunks(drawn, config.generate.samples), config.data
        facts = {"precision": precision, "batch_size": min(config.launcher.batch_size, CHUNK)}
        write_samples(context.work / "samples", chunks, names, data.image_size, data.shard_size, facts)
        _write_grid(config.generate, drawn, names, context.work / "grid.png")


def check(config: Config, root: Path) -> None:
    """Check now what the evaluation needs, so that it does not fail after sampling.

    Raises:
        UserError: with a message that says what to change.
    """
    check_networks(config.evaluate)
    check_counts(config.evaluate, config.generate.samples, image_counts(read_manifest(root / "data/images")))


def _write_grid(config: GenerateConfig, drawn: Path, label_names: list[str], picture: Path) -> None:
    chunks = sample_chunks(drawn, config.samples)
    wanted = grid_indices(len(label_names), config.grid_per_class, config.samples)
    images = np.stack([np.load(chunks[i // CHUNK].path, mmap_mode="r")[i % CHUNK] for i in wanted.flat])
    image_grid(images, wanted.shape[1], label_names[: len(wanted)]).save(picture)
