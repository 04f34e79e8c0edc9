"""Stage ``reconstruct``: what the tokenizer keeps of real images, by levels, range and family (paper Table 1)."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKL

from tokenbridge.config import QuantizerConfig, ReconstructConfig
from tokenbridge.data.shards import ImageShards
from tokenbridge.evaluation.features import ShardImageDataset, extract_features
from tokenbridge.evaluation.metrics import frechet_distance
from tokenbridge.evaluation.reconstruction import psnr, ssim
from tokenbridge.figures import study_figure
from tokenbridge.files import write_csv, write_json
from tokenbridge.levels import FIXED_FAMILIES
from tokenbridge.moments import Moments, fitting_latents, sample_posterior
from tokenbridge.plots import image_grid
from tokenbridge.progress import Progress
from tokenbridge.quantizer import fit_quantizer, to_maps, to_sequence
from tokenbridge.stages.job import Job, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.vae import decode_images, encode_moments, load_vae

PICTURED = 10  # test images in the picture
ORIGINAL, CONTINUOUS = "original", "continuous"  # titles of what is not quantized

Studies = Mapping[str, list[QuantizerConfig]]
"""Under the name of each setting: the configured quantizer with that setting changed."""


def main() -> None:
    with stage_run("reconstruct") as run:
        compute(run, work, alone=True)
        run.publish(run.work / "report.json", "reports/reconstruct.json")
        run.publish(run.work / "plots", "reports/reconstruct")


def work(job: Job) -> None:
    """Write ``report.json`` and the folder ``plots``."""
    studies = study_variants(job.config.quantizer, job.config.reconstruct)
    originals, latents, vae = _latents(job)
    sets = {CONTINUOUS: latents} | _quantized(job, studies, latents)
    metrics, pictures = _measure(job, originals, sets, vae)
    plots = job.work / "plots"
    plots.mkdir(exist_ok=True)
    write_csv(plots / "table.csv", study_table(studies, metrics))
    panels = {name: [(getattr(v, name), metrics[title(v)]) for v in each] for name, each in studies.items()}
    study_figure(panels, metrics[CONTINUOUS]).savefig(plots / "study.png")
    image_grid(np.concatenate(list(pictures.values())), PICTURED, list(pictures)).save(plots / "images.png")
    write_json(job.work / "report.json", _summary(metrics, job.config.quantizer))


def study_variants(config: QuantizerConfig, wanted: ReconstructConfig) -> Studies:
    """The variants of each study, the configured quantizer among them; no study of a range that is not used."""
    ranges = wanted.ranges if config.family in FIXED_FAMILIES else []
    studies = {
        "levels": [replace(config, levels=levels) for levels in sorted({*wanted.levels, config.levels})],
        "range": [replace(config, range=reach) for reach in sorted({*ranges, config.range})],
        "family": [replace(config, family=family) for family in sorted({*wanted.families, config.family})],
    }
    return {name: variants for name, variants in studies.items() if name != "range" or ranges}


def title(variant: QuantizerConfig) -> str:
    """Name of a variant for people; equal for variants that quantize alike."""
    reach = f", +-{variant.range:g}" if variant.family in FIXED_FAMILIES else ""
    return f"{variant.family}, {variant.levels} levels{reach}"


def study_table(studies: Studies, metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, object]]:
    """One row for the continuous latents and one for each distinct variant: its settings, its metrics."""
    settings: dict[str, dict[str, object]] = {CONTINUOUS: {"family": CONTINUOUS, "levels": None, "range": None}}
    for variant in (variant for variants in studies.values() for variant in variants):
        reach = variant.range if variant.family in FIXED_FAMILIES else None
        settings[title(variant)] = {"family": variant.family, "levels": variant.levels, "range": reach}
    return [{"quantizer": name, **row, **metrics[name]} for name, row in settings.items()]


def _latents(job: Job) -> tuple[np.ndarray, torch.Tensor, AutoencoderKL]:
    """The test images and their posterior means [N, C0, H, W] in VAE units."""
    images = ImageShards(job.root / "data/images", "test")
    originals, _ = images.read(0, min(job.config.reconstruct.images, len(images)))
    vae = load_vae(job.root / "models/vae").to(job.device)
    batches = torch.from_numpy(np.arange(len(originals))).split(job.config.launcher.batch_size)
    means = [sample_posterior(encode_moments(vae, originals[batch.numpy()])).cpu() for batch in batches]
    return originals, torch.cat(means), vae


def _quantized(job: Job, studies: Studies, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """The latents after a trip through the tokens of each distinct variant, by title."""
    config = job.config.quantizer
    fitting = fitting_latents(Moments(job.root / "data/moments"), config.fit_images, job.config.seed)
    distinct = {title(variant): variant for variants in studies.values() for variant in variants}
    quantized = {}
    for name, variant in distinct.items():
        quantizer = fit_quantizer(fitting, variant)
        normalized = quantizer.normalize(latents)
        levels = quantizer.decode(quantizer.encode(to_sequence(normalized)))
        quantized[name] = quantizer.denormalize(to_maps(levels, *normalized.shape[-2:]))
    return quantized


def _measure(
    job: Job, originals: np.ndarray, sets: Mapping[str, torch.Tensor], vae: AutoencoderKL
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Metrics of the images of each set of latents, and the first images for the picture, by title."""
    size, batch_size = job.config.evaluate.feature_size, job.config.launcher.batch_size
    progress = Progress("reconstruct", len(sets) + 1, "sets", job.config.launcher.log_seconds)
    reference = extract_features(ShardImageDataset(ImageShards(job.root / "data/images", "test")), size)
    progress.advance(1)
    metrics, pictures = {}, {ORIGINAL: originals[:PICTURED]}
    for name, latents in sets.items():
        images = np.concatenate([decode_images(vae, batch) for batch in latents.split(batch_size)])
        metrics[name] = {
            "psnr": psnr(images, originals),
            "ssim": ssim(images, originals),
            f"fd_efficientnet_lite0_{size}px": frechet_distance(extract_features(images, size), reference),
        }
        pictures[name] = images[:PICTURED]
        progress.advance(1)
    return metrics, pictures


def _summary(metrics: Mapping[str, Mapping[str, float]], config: QuantizerConfig) -> dict[str, float]:
    """The continuous VAE, and the configured quantizer, as flat metrics."""
    wanted = {"continuous": metrics[CONTINUOUS], "quantized": metrics[title(config)]}
    return {f"{prefix}_{name}": value for prefix, row in wanted.items() for name, value in row.items()}


if __name__ == "__main__":
    main()
