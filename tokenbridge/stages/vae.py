"""Stage ``vae``: trains the VAE on the images, or takes a folder of pretrained weights as it is."""

from pathlib import Path

from tokenbridge.config import ConfigError
from tokenbridge.data.shards import ImageShards
from tokenbridge.device import pick_device
from tokenbridge.files import atomic_write_text, write_csv
from tokenbridge.stages.runtime import StageRun, stage_run
from tokenbridge.vae import load_vae
from tokenbridge.vae_training import train_vae


def main() -> None:
    with stage_run("vae") as run:
        if run.config.vae.pretrained is None:
            _train(run)
        else:
            _take(run, Path(run.config.vae.pretrained).expanduser())
        run.publish(run.work / "vae", "models/vae")


def _train(run: StageRun) -> None:
    shards = ImageShards(run.root / "data/images", "train")
    images, _ = shards.read(0, len(shards))
    vae, history = train_vae(
        run.config.vae,
        images,
        seed=run.config.seed,
        checkpoint=run.work / "checkpoint.pt",
        launcher=run.config.launcher,
        tracker=run.tracker,
        device=pick_device(run.config.launcher),
    )
    vae.save_pretrained(run.work / "vae")
    write_csv(run.work / "loss.csv", history)
    run.publish(run.work / "loss.csv", "reports/vae/loss.csv")


def _take(run: StageRun, folder: Path) -> None:
    vae = load_vae(folder)
    if vae.config.latent_channels != run.config.vae.dimensions:
        raise ConfigError(
            f"{folder} has {vae.config.latent_channels} latent dimensions but vae.dimensions is "
            f"{run.config.vae.dimensions}: make them agree"
        )
    vae.save_pretrained(run.work / "vae")
    atomic_write_text(
        run.work / "loss.csv", "step,images,reconstruction_loss\n"
    )  # DVC wants the file; nothing was trained
    run.publish(run.work / "loss.csv", "reports/vae/loss.csv")


if __name__ == "__main__":
    main()
