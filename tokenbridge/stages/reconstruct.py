"""Stage ``reconstruct``: what the tokenizer keeps of real images, per number of levels (paper Table 1)."""

import numpy as np
import torch
from diffusers import AutoencoderKL

from tokenbridge.data.shards import ImageShards
from tokenbridge.device import pick_device
from tokenbridge.evaluation.features import ShardImageDataset, extract_features
from tokenbridge.evaluation.metrics import frechet_distance
from tokenbridge.evaluation.reconstruction import psnr, ssim
from tokenbridge.files import write_csv, write_json
from tokenbridge.moments import Moments, fitting_latents, sample_posterior
from tokenbridge.plots import image_grid
from tokenbridge.progress import Progress
from tokenbridge.quantizer import fit_quantizer, to_maps, to_sequence
from tokenbridge.stages.runtime import StageRun, stage_run
from tokenbridge.vae import decode_images, encode_moments, load_vae

PICTURED = 10  # test images in the picture


def main() -> None:
    with stage_run("reconstruct") as run:
        originals, latents, vae = _latents(run)
        sets = {"continuous": latents} | _quantized(run, latents)
        images = {name: _decode(vae, values, run) for name, values in sets.items()}
        rows = _measure(run, originals, images)
        plots = run.work / "plots"
        plots.mkdir(exist_ok=True)
        write_csv(plots / "levels.csv", rows)
        strips = np.concatenate([originals[:PICTURED], *(images[name][:PICTURED] for name in images)])
        image_grid(strips, PICTURED, ["original", *images]).save(plots / "images.png")
        write_json(run.work / "report.json", _summary(rows, run.config.quantizer.levels))
        run.publish(run.work / "report.json", "reports/reconstruct.json")
        run.publish(plots, "reports/reconstruct")


def _latents(run: StageRun) -> tuple[np.ndarray, torch.Tensor, AutoencoderKL]:
    """The test images and their posterior means [N, C, h, w] in VAE units."""
    images = ImageShards(run.root / "data/images", "test")
    originals, _ = images.read(0, min(run.config.reconstruct.images, len(images)))
    vae = load_vae(run.root / "models/vae").to(pick_device(run.config.launcher))
    batches = torch.from_numpy(np.arange(len(originals))).split(run.config.launcher.batch_size)
    means = [sample_posterior(encode_moments(vae, originals[batch.numpy()])).cpu() for batch in batches]
    return originals, torch.cat(means), vae


def _quantized(run: StageRun, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """The latents after a trip through the tokens, for each number of levels."""
    config = run.config.quantizer
    fitting = fitting_latents(Moments(run.root / "data/moments"), config.fit_images, run.config.seed)
    quantized = {}
    for levels in sorted({*run.config.reconstruct.levels, config.levels}):
        quantizer = fit_quantizer(fitting, config, levels)
        tokens = quantizer.encode(to_sequence(quantizer.normalize(latents)))
        maps = to_maps(quantizer.decode(tokens), *latents.shape[-2:])
        quantized[f"{levels} levels"] = quantizer.denormalize(maps)
    return quantized


def _decode(vae: AutoencoderKL, latents: torch.Tensor, run: StageRun) -> np.ndarray:
    return np.concatenate([decode_images(vae, batch) for batch in latents.split(run.config.launcher.batch_size)])


def _measure(run: StageRun, originals: np.ndarray, images: dict[str, np.ndarray]) -> list[dict[str, object]]:
    size = run.config.evaluate.feature_size
    shards = ImageShards(run.root / "data/images", "test")
    progress = Progress("reconstruct", len(images) + 1, "sets", run.config.launcher.log_seconds)
    reference = extract_features(ShardImageDataset(shards), size)
    progress.advance(1)
    rows: list[dict[str, object]] = []
    for name, reconstructed in images.items():
        distance = frechet_distance(extract_features(reconstructed, size), reference)
        rows.append(
            {
                "levels": name.removesuffix(" levels"),
                "psnr": psnr(reconstructed, originals),
                "ssim": ssim(reconstructed, originals),
                f"fd_efficientnet_lite0_{size}px": distance,
            }
        )
        progress.advance(1)
    return rows


def _summary(rows: list[dict[str, object]], levels: int) -> dict[str, object]:
    """The continuous VAE, and the configured quantizer, as flat metrics."""
    wanted = {"continuous": "continuous", str(levels): "quantized"}
    return {
        f"{wanted[str(row['levels'])]}_{name}": value
        for row in rows
        if row["levels"] in wanted
        for name, value in row.items()
        if name != "levels"
    }


if __name__ == "__main__":
    main()
