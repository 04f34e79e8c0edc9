"""Stage ``vae``: trains the VAE on the images, or takes a folder of pretrained weights as it is."""

from dataclasses import replace
from pathlib import Path

from tokenbridge.checkpoints import Checkpoints
from tokenbridge.config import ConfigError
from tokenbridge.data import TRAIN
from tokenbridge.data.shards import ImageShards
from tokenbridge.files import atomic_write_text, write_csv, write_json
from tokenbridge.stages.job import NUMERIC_PRECISION, Job, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.vae import load_vae
from tokenbridge.vae_training import train_vae

LOSS = "reconstruction_loss"  # the last window's mean


def main() -> None:
    with stage_run("vae") as run:
        compute(run, work, alone=True)
        run.publish(run.work / "metrics.json", "reports/vae.json")
        run.publish(run.work / "loss.csv", "reports/vae/loss.csv")
        run.publish(run.work / "vae", "models/vae")


def work(job: Job) -> None:
    """Write ``vae``, ``metrics.json`` and ``loss.csv``."""
    if job.config.vae.pretrained is None:
        _train(job)
    else:
        _take(job, Path(job.config.vae.pretrained).expanduser())


def _train(job: Job) -> None:
    config = replace(job.config.vae, precision=job.precision(job.config.vae.precision))
    shards = ImageShards(job.root / "data/images", TRAIN)
    images, _ = shards.read(0, len(shards))
    vae, history = train_vae(
        config,
        images,
        seed=job.config.seed,
        checkpoints=Checkpoints(job.work / "checkpoints"),
        launcher=job.config.launcher,
        tracker=job.tracker,
        device=job.device,
    )
    vae.save_pretrained(job.work / "vae")
    write_csv(job.work / "loss.csv", history)
    write_json(job.work / "metrics.json", {LOSS: history[-1][LOSS], NUMERIC_PRECISION: config.precision})


def _take(job: Job, folder: Path) -> None:
    vae = load_vae(folder)
    if vae.config.latent_channels != job.config.vae.dimensions:
        raise ConfigError(
            f"{folder} has {vae.config.latent_channels} latent dimensions but vae.dimensions is "
            f"{job.config.vae.dimensions}: make them agree"
        )
    vae.save_pretrained(job.work / "vae")
    atomic_write_text(
        job.work / "loss.csv", "step,images,reconstruction_loss\n"
    )  # DVC wants the files; nothing was trained
    write_json(job.work / "metrics.json", {})


if __name__ == "__main__":
    main()
