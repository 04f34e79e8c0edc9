"""Stage ``train@<model>``: tokens of the training images -> one model, as a whole pipeline folder.

If the model's ``pretrained`` names a pipeline folder, such as one of `tokenbridge import`, that pipeline is taken.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_folder, atomic_write_text, write_csv, write_json
from tokenbridge.base.image_grid import image_grid
from tokenbridge.config import MOMENTS, ConfigError, ModelConfig
from tokenbridge.engine.divergence import REPORT
from tokenbridge.images.shards import read_manifest
from tokenbridge.model import AutoregressiveModel
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.samples import draw_samples, grid_indices
from tokenbridge.stages.context import NUMERIC_PRECISION, StageContext, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.tokenizer.fitting import load_quantizer
from tokenbridge.tokenizer.latents import Quantizer
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.tokenizer.tokens import StoredTokens
from tokenbridge.training.datasets import FreshTokens, TrainingData
from tokenbridge.training.trainer import BAD_STEP, token_shape, train
from tokenbridge.vae.autoencoder import load_vae

LOSS, VALIDATION = "loss.csv", "validation.csv"  # curves of the training and of the validation loss


def main(name: str) -> None:
    with stage_run(f"train@{name}") as run:
        pretrained = run.config.models[name].pretrained is not None
        try:
            compute(run, work, alone=pretrained)
        except Exception:
            with suppress(OSError, UserError):  # no such step, or a full disk
                run.tracker.artifact(run.work / BAD_STEP / REPORT, BAD_STEP)
            raise
        run.publish(run.work / "metrics.json", f"reports/train/{name}.json")
        for table in (LOSS, VALIDATION):
            run.publish(run.work / table, f"reports/train/{name}/{table}")
        run.publish(run.work / "pipeline", f"models/{name}")
        run.tracker.model(run.root / "models" / name, f"tokenbridge-{name}")


def work(context: StageContext) -> None:
    """Write ``pipeline``, ``metrics.json`` and the curves."""
    quantizer = load_quantizer(context.root / "models/quantizer")
    config, data = context.config.models[context.item], _training_data(context, quantizer)
    if config.pretrained is None:
        _train(context, config, data, quantizer)
    else:
        _take(context, Path(config.pretrained).expanduser(), token_shape(data, quantizer))


def _training_data(context: StageContext, quantizer: Quantizer) -> TrainingData:
    folder = context.root / "data" / context.config.train_on
    if context.config.train_on == MOMENTS:
        return FreshTokens(Moments(folder), quantizer)
    return StoredTokens(folder, context.root / "models/quantizer")


def _train(context: StageContext, config: ModelConfig, data: TrainingData, quantizer: Quantizer) -> None:
    recipe = replace(config.train, precision=context.precision(config.train.precision))
    config = replace(config, train=recipe)
    model, history, evaluations = train(
        config,
        data,
        FreshTokens(Moments(context.root / "data/validation_moments"), quantizer),
        quantizer,
        folder=context.work,
        launcher=context.config.launcher,
        tracker=context.tracker,
        device=context.device,
        processes=context.processes,
        stop=context.stop,
        draw_grid=(lambda model: draw_grid(context, _pipeline(context, model, quantizer)))
        if recipe.sample_grids
        else None,
    )
    if context.processes.first:
        loss = evaluations[-1]["validation_loss"]
        metrics: dict[str, float | str] = {"validation_loss": loss, NUMERIC_PRECISION: recipe.precision}
        _write(context, _pipeline(context, model, quantizer), metrics)
        write_csv(context.work / LOSS, history)
        write_csv(context.work / VALIDATION, evaluations)


def _pipeline(context: StageContext, model: AutoregressiveModel, quantizer: Quantizer) -> TokenBridgePipeline:
    label_names = read_manifest(context.root / "data/images")["label_names"]
    return TokenBridgePipeline(load_vae(context.root / "models/vae"), model, quantizer, label_names)


def draw_grid(context: StageContext, pipeline: TokenBridgePipeline) -> Image:
    """Draw the picture that the stage ``generate`` would write of this model, with the same samples and settings."""
    config, names = context.config.generate, pipeline.class_names
    pipeline.to(context.device).precision = config.precision
    wanted = grid_indices(len(names), config.grid_per_class, config.samples)
    parts = torch.from_numpy(wanted.ravel()).split(context.config.launcher.batch_size)
    images = [draw_samples(pipeline, part.tolist(), context.config.seed, config) for part in parts]
    return image_grid(np.concatenate(images), wanted.shape[1], names[: len(wanted)])


def _take(context: StageContext, folder: Path, shape: dict[str, int | None]) -> None:
    """Take the pipeline in ``folder``, if it has the ``shape`` of this project's tokens."""
    pipeline = TokenBridgePipeline.from_pretrained(folder)
    config = pipeline.transformer.config
    unlike = [f"{name} is {config[name]}, not {value}" for name, value in shape.items() if config[name] != value]
    if unlike:
        raise ConfigError(
            f"models.{context.item}.pretrained: {folder} does not fit data and quantizer: {'; '.join(unlike)}. "
            "Choose the settings of data, vae and quantizer that it was made with"
        )
    _write(context, pipeline, {})
    # DVC requires the files; they are empty because nothing was trained
    atomic_write_text(context.work / LOSS, "step,images,loss\n")
    atomic_write_text(context.work / VALIDATION, "step,images,validation_loss\n")


def _write(context: StageContext, pipeline: TokenBridgePipeline, metrics: dict[str, float | str]) -> None:
    with atomic_folder(context.work / "pipeline") as target:
        pipeline.save_pretrained(target)
    parameters = sum(parameter.numel() for parameter in pipeline.transformer.parameters())
    write_json(context.work / "metrics.json", metrics | {"parameters": parameters})
