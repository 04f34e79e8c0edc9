"""Stage ``train@<model>``: tokens of the training images -> one model, as a whole pipeline folder.

A model with ``pretrained`` set is taken from there instead, such as one that `tokenbridge import` wrote.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from tokenbridge.config import MOMENTS, ConfigError, ModelConfig
from tokenbridge.data.shards import read_manifest
from tokenbridge.files import atomic_path, atomic_write_text, write_csv, write_json
from tokenbridge.generation import GRID_ROWS, draw_samples, grid_indices
from tokenbridge.loading import load_whole
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.moments import Moments
from tokenbridge.numerics import REPORT
from tokenbridge.pipeline import TokenBridgePipeline
from tokenbridge.plots import image_grid
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.stages.job import NUMERIC_PRECISION, Job, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.tokens import StoredTokens
from tokenbridge.training import BAD_STEP, token_shape, train
from tokenbridge.training_data import FreshTokens, TrainingData
from tokenbridge.vae import load_vae

LOSS, VALIDATION = "loss.csv", "validation.csv"  # curves of the training and of the validation loss


def main() -> None:
    name = sys.argv[1]
    with stage_run(f"train@{name}") as run:
        pretrained = run.config.models[name].pretrained is not None
        try:
            compute(run, work, alone=pretrained)
        except Exception:
            if (report := run.work / BAD_STEP / REPORT).exists():
                run.tracker.artifact(report, BAD_STEP)
            raise
        run.publish(run.work / "metrics.json", f"reports/train/{name}.json")
        for table in (LOSS, VALIDATION):
            run.publish(run.work / table, f"reports/train/{name}/{table}")
        run.publish(run.work / "pipeline", f"models/{name}")
        run.tracker.model(run.root / "models" / name, f"tokenbridge-{name}")


def work(job: Job) -> None:
    """Write ``pipeline``, ``metrics.json`` and the curves."""
    quantizer = load_whole(DimensionwiseQuantizer, job.root / "models/quantizer")
    config, data = job.config.models[job.item], _training_data(job, quantizer)
    if config.pretrained is None:
        _train(job, config, data, quantizer)
    else:
        _take(job, Path(config.pretrained).expanduser(), token_shape(data, quantizer))


def _training_data(job: Job, quantizer: DimensionwiseQuantizer) -> TrainingData:
    folder = job.root / "data" / job.config.train_on
    if job.config.train_on == MOMENTS:
        return FreshTokens(Moments(folder), quantizer)
    return StoredTokens(folder, job.root / "models/quantizer")


def _train(job: Job, config: ModelConfig, data: TrainingData, quantizer: DimensionwiseQuantizer) -> None:
    recipe = replace(config.train, precision=job.precision(config.train.precision))
    config = replace(config, train=recipe)
    model, history, evaluations = train(
        config,
        data,
        FreshTokens(Moments(job.root / "data/validation_moments"), quantizer),
        quantizer,
        folder=job.work,
        launcher=job.config.launcher,
        tracker=job.tracker,
        device=job.device,
        processes=job.processes,
        stop=job.stop,
        draw_grid=(lambda model: draw_grid(job, _pipeline(job, model, quantizer))) if recipe.sample_grids else None,
    )
    if job.processes.first:
        loss = evaluations[-1]["validation_loss"]
        metrics: dict[str, float | str] = {"validation_loss": loss, NUMERIC_PRECISION: recipe.precision}
        _write(job, _pipeline(job, model, quantizer), metrics)
        write_csv(job.work / LOSS, history)
        write_csv(job.work / VALIDATION, evaluations)


def _pipeline(job: Job, model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> TokenBridgePipeline:
    label_names = read_manifest(job.root / "data/images")["label_names"]
    return TokenBridgePipeline(load_vae(job.root / "models/vae"), model, quantizer, label_names)


def draw_grid(job: Job, pipeline: TokenBridgePipeline) -> Image:
    """The picture that the stage ``generate`` would write of this model: the same samples, by its settings."""
    config, names = job.config.generate, pipeline.class_names
    pipeline.to(job.device)
    wanted = torch.tensor(grid_indices(len(names), config.grid_per_class, config.samples))
    parts = wanted.split(job.config.launcher.batch_size)
    images = [draw_samples(pipeline, part.tolist(), job.config.seed, config) for part in parts]
    return image_grid(np.concatenate(images), config.grid_per_class, names[:GRID_ROWS])


def _take(job: Job, folder: Path, shape: dict[str, int]) -> None:
    """The pipeline in ``folder``, if it has the ``shape`` of this project's tokens."""
    pipeline = TokenBridgePipeline.from_pretrained(folder)
    config = pipeline.transformer.config
    unlike = [f"{name} is {config[name]}, not {value}" for name, value in shape.items() if config[name] != value]
    if unlike:
        raise ConfigError(
            f"models.{job.item}.pretrained: {folder} does not fit data and quantizer: {'; '.join(unlike)}. "
            "Choose the settings of data, vae and quantizer that it was made with"
        )
    _write(job, pipeline, {})
    # DVC wants the files; nothing was trained
    atomic_write_text(job.work / LOSS, "step,images,loss\n")
    atomic_write_text(job.work / VALIDATION, "step,images,validation_loss\n")


def _write(job: Job, pipeline: TokenBridgePipeline, metrics: dict[str, float | str]) -> None:
    with atomic_path(job.work / "pipeline") as target:
        pipeline.save_pretrained(target)
    parameters = sum(parameter.numel() for parameter in pipeline.transformer.parameters())
    write_json(job.work / "metrics.json", metrics | {"parameters": parameters})


if __name__ == "__main__":
    main()
