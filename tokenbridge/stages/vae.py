"""Stage ``vae``: images -> the VAE, trained here or copied from a folder of pretrained weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tokenbridge.base.checkpoints import Checkpoints
from tokenbridge.base.files import atomic_write_text, write_csv, write_json
from tokenbridge.config import ConfigError
from tokenbridge.images import TRAIN
from tokenbridge.images.decoded import decode_to_disk
from tokenbridge.images.shards import ImageShards
from tokenbridge.stages.context import NUMERIC_PRECISION, StageContext, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.vae.autoencoder import load_vae
from tokenbridge.vae.training import train_vae
from tokenbridge.vae.vector_quantization import save_codebook

LOSS = "reconstruction_loss"  # the last window's mean


def main() -> None:
    with stage_run("vae") as run:
        compute(run, work, alone=True)
        run.publish(run.work / "metrics.json", "reports/vae.json")
        run.publish(run.work / "loss.csv", "reports/vae/loss.csv")
        run.publish(run.work / "vae", "models/vae")


def work(context: StageContext) -> None:
    """Write ``vae``, ``metrics.json`` and ``loss.csv``."""
    if context.config.vae.pretrained is None:
        _train(context)
    else:
        _take(context, Path(context.config.vae.pretrained).expanduser())


def _train(context: StageContext) -> None:
    config = replace(context.config.vae, precision=context.precision(context.config.vae.precision))
    shards, launcher = ImageShards(context.root / "data/images", TRAIN), context.config.launcher
    vae, codebook, history = train_vae(
        config,
        decode_to_disk(shards, context.work / "images", context.name, np.asarray, launcher.log_seconds),
        seed=context.config.seed,
        checkpoints=Checkpoints(context.work / "checkpoints"),
        launcher=launcher,
        tracker=context.tracker,
        device=context.device,
    )
    vae.save_pretrained(context.work / "vae")
    if codebook is not None:
        save_codebook(codebook, context.work / "vae")
    write_csv(context.work / "loss.csv", history)
    write_json(context.work / "metrics.json", {LOSS: history[-1][LOSS], NUMERIC_PRECISION: config.precision})


def _take(context: StageContext, folder: Path) -> None:
    vae = load_vae(folder)
    if vae.config.latent_channels != context.config.vae.dimensions:
        raise ConfigError(
            f"{folder} has {vae.config.latent_channels} latent dimensions but vae.dimensions is "
            f"{context.config.vae.dimensions}: set vae.dimensions to the folder's"
        )
    vae.save_pretrained(context.work / "vae")
    # DVC requires the file; it is empty because nothing was trained
    atomic_write_text(context.work / "loss.csv", f"step,images,{LOSS}\n")
    write_json(context.work / "metrics.json", {})
