"""Stage ``reconstruct``: quality of reconstructions by levels, range and family of the quantizer (paper Table 1)."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import Dataset

from tokenbridge.base.device import autocast, resolve_precision
from tokenbridge.base.figures import study_figure
from tokenbridge.base.files import write_csv, write_json
from tokenbridge.base.image_grid import image_grid
from tokenbridge.base.progress import Progress
from tokenbridge.config import QuantizerConfig, ReconstructConfig
from tokenbridge.evaluation.features import Features, ShardImageDataset, extract_features
from tokenbridge.evaluation.metrics import extractor_name, frechet_distance
from tokenbridge.evaluation.reconstruction import psnr, ssim
from tokenbridge.images import TEST, VALIDATION
from tokenbridge.images.shards import ImageShards
from tokenbridge.stages.context import NUMERIC_PRECISION, StageContext, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.tokenizer.levels import FIXED_FAMILIES
from tokenbridge.tokenizer.moments import Moments, fitting_latents, sample_posterior
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer, fit_quantizer, to_maps, to_sequence
from tokenbridge.vae.autoencoder import decode_images, encode_moments, load_vae

PICTURED = 10  # images in the picture
ORIGINAL, CONTINUOUS = "original", "continuous"  # titles of the images that are not quantized

Studies = Mapping[str, list[QuantizerConfig]]
"""Name of a setting -> variants of the configured quantizer with that setting changed."""


def main() -> None:
    with stage_run("reconstruct") as run:
        compute(run, work, alone=True)
        run.publish(run.work / "report.json", "reports/reconstruct.json")
        run.publish(run.work / "plots", "reports/reconstruct")


def work(context: StageContext) -> None:
    """Write ``report.json`` and the folder ``plots``.

    The study uses validation images, because a quantizer is chosen from it. The test images give only the figures of
    the configured quantizer.
    """
    config = context.config.quantizer
    studies = study_variants(config, context.config.reconstruct)
    quantizers = _fitted(context, studies)
    measure = Measure(context, load_vae(context.root / "models/vae").to(context.device), len(quantizers))
    studied, pictures = measure.reconstructions(VALIDATION, quantizers)
    tested, _ = measure.reconstructions(TEST, {title(config): quantizers[title(config)]})
    plots = context.work / "plots"
    plots.mkdir(exist_ok=True)
    write_csv(plots / "table.csv", study_table(studies, studied))
    panels = {name: [(getattr(v, name), studied[title(v)]) for v in each] for name, each in studies.items()}
    study_figure(panels, studied[CONTINUOUS]).savefig(plots / "study.png")
    image_grid(np.concatenate(list(pictures.values())), PICTURED, list(pictures)).save(plots / "images.png")
    validation = {f"{VALIDATION}_{name}": value for name, value in _summary(studied, config).items()}
    write_json(
        context.work / "report.json", _summary(tested, config) | validation | {NUMERIC_PRECISION: measure.precision}
    )


def study_variants(config: QuantizerConfig, wanted: ReconstructConfig) -> Studies:
    """Return the variants of each study, including the configured quantizer.

    There is no study of the range if the family does not use it.
    """
    ranges = wanted.ranges if config.family in FIXED_FAMILIES else []
    studies = {
        "levels": [replace(config, levels=levels) for levels in sorted({*wanted.levels, config.levels})],
        "range": [replace(config, range=reach) for reach in sorted({*ranges, config.range})],
        "family": [replace(config, family=family) for family in sorted({*wanted.families, config.family})],
    }
    return {name: variants for name, variants in studies.items() if name != "range" or ranges}


def title(variant: QuantizerConfig) -> str:
    """Return a readable name of a variant. Variants that quantize in the same way have the same name."""
    reach = f", +-{variant.range:g}" if variant.family in FIXED_FAMILIES else ""
    return f"{variant.family}, {variant.levels} levels{reach}"


def study_table(studies: Studies, metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, object]]:
    """Return a row of settings and metrics for the continuous latents, and one for each distinct variant."""
    settings: dict[str, dict[str, object]] = {CONTINUOUS: {"family": CONTINUOUS, "levels": None, "range": None}}
    for variant in (variant for variants in studies.values() for variant in variants):
        reach = variant.range if variant.family in FIXED_FAMILIES else None
        settings[title(variant)] = {"family": variant.family, "levels": variant.levels, "range": reach}
    return [{"quantizer": name, **row, **metrics[name]} for name, row in settings.items()]


def _fitted(context: StageContext, studies: Studies) -> dict[str, DimensionwiseQuantizer]:
    """Return title -> quantizer for each distinct variant, fitted to the training images' moments."""
    config = context.config.quantizer
    fitting = fitting_latents(Moments(context.root / "data/moments"), config.fit_images, context.config.seed)
    distinct = {title(variant): variant for variants in studies.values() for variant in variants}
    return {name: fit_quantizer(fitting, variant) for name, variant in distinct.items()}


class Measure:
    """The measurement of reconstructions: by the VAE alone, and through the tokens of each quantizer.

    Args:
        variants: the number of quantizers on the validation images, for the progress.
    """

    def __init__(self, context: StageContext, vae: AutoencoderKL, variants: int) -> None:
        self.context, self.vae = context, vae
        self.precision = context.precision(context.config.reconstruct.precision)
        self.progress = Progress("reconstruct", variants + 5, "sets", context.config.launcher.log_seconds)

    def reconstructions(
        self, split: str, quantizers: Mapping[str, DimensionwiseQuantizer]
    ) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
        """Return title -> metrics of each set of reconstructions, and title -> its first images for the picture."""
        images = ImageShards(self.context.root / "data/images", split)
        originals, _ = images.read(0, min(self.context.config.reconstruct.images, len(images)))
        reference = self._features(ShardImageDataset(images))
        latents = self._latents(originals)
        metrics, pictures = {}, {ORIGINAL: originals[:PICTURED]}
        sets = {CONTINUOUS: latents} | {name: _through_tokens(each, latents) for name, each in quantizers.items()}
        for name, passed in sets.items():
            rebuilt = self._decode(passed)
            distance = frechet_distance(self._features(rebuilt), reference)
            metrics[name] = {
                "psnr": psnr(rebuilt, originals),
                "ssim": ssim(rebuilt, originals),
                f"fd_{extractor_name(self.context.config.evaluate)}": distance,
            }
            pictures[name] = rebuilt[:PICTURED]
        return metrics, pictures

    def _features(self, images: Dataset[torch.Tensor] | np.ndarray) -> Features:
        config = self.context.config.evaluate
        precision = resolve_precision(config.precision, self.context.device)
        features = extract_features(images, config.feature_size, precision=precision)
        self.progress.advance(1)
        return features

    def _latents(self, originals: np.ndarray) -> torch.Tensor:
        """Return the posterior means [N, C0, H, W] in VAE units."""
        batch_size = self.context.config.launcher.batch_size
        batches = [originals[start : start + batch_size] for start in range(0, len(originals), batch_size)]
        with autocast(self.context.device, self.precision):
            return torch.cat([sample_posterior(encode_moments(self.vae, batch)).cpu() for batch in batches])

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        with autocast(self.context.device, self.precision):
            batches = latents.split(self.context.config.launcher.batch_size)
            return np.concatenate([decode_images(self.vae, batch) for batch in batches])


def _through_tokens(quantizer: DimensionwiseQuantizer, latents: torch.Tensor) -> torch.Tensor:
    """Return the latents after encoding to tokens and decoding."""
    normalized = quantizer.normalize(latents)
    levels = quantizer.decode(quantizer.encode(to_sequence(normalized)))
    return quantizer.denormalize(to_maps(levels, *normalized.shape[-2:]))


def _summary(metrics: Mapping[str, Mapping[str, float]], config: QuantizerConfig) -> dict[str, float]:
    """Return the metrics of the continuous VAE and of the configured quantizer as a flat dict."""
    wanted = {"continuous": metrics[CONTINUOUS], "quantized": metrics[title(config)]}
    return {f"{prefix}_{name}": value for prefix, row in wanted.items() for name, value in row.items()}


if __name__ == "__main__":
    main()
