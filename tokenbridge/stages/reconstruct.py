"""Stage ``reconstruct``: quality of reconstructions by levels, range and family of the quantizer (paper Table 1)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from tokenbridge.base.arrays import shard_name, write_shard
from tokenbridge.base.device import autocast, resolve_precision
from tokenbridge.base.figures import study_figure
from tokenbridge.base.files import write_csv, write_json
from tokenbridge.base.image_grid import image_grid
from tokenbridge.base.progress import Progress
from tokenbridge.config import CODEBOOK_FAMILIES, LEVEL_FAMILIES, SECOND_MOMENTS, QuantizerConfig, ReconstructConfig
from tokenbridge.evaluation.features import Images, ShardImageDataset
from tokenbridge.evaluation.inception import Statistics
from tokenbridge.evaluation.metrics import distance, statistics
from tokenbridge.evaluation.networks import given_networks, lite0
from tokenbridge.evaluation.protocol import balance, protocol
from tokenbridge.evaluation.reconstruction import psnr, ssim
from tokenbridge.evaluation.weight_files import check_networks
from tokenbridge.images import TEST, VALIDATION
from tokenbridge.images.shards import ImageShards
from tokenbridge.images.splits import balanced_subset
from tokenbridge.stages.context import NUMERIC_PRECISION, StageContext, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.tokenizer.latents import Quantizer, to_maps, to_sequence
from tokenbridge.tokenizer.levels import FIXED_FAMILIES
from tokenbridge.tokenizer.moments import Moments, fitting_latents, sample_posterior
from tokenbridge.vae.autoencoder import decode_images, encode_moments, load_vae
from tokenbridge.vae.vector_quantization import load_codebook

PICTURED = 10  # images in the picture
ORIGINAL, CONTINUOUS = "original", "continuous"  # titles of the images that are not quantized

Studies = Mapping[str, list[QuantizerConfig]]
"""Name of a setting -> variants of the configured quantizer with that setting changed."""


def main() -> None:
    with stage_run("reconstruct") as run:
        check_networks(run.config.evaluate)
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
    images = np.stack(list(pictures.values()))
    image_grid(np.concatenate(images), images.shape[1], list(pictures)).save(plots / "images.png")
    validation = {f"{VALIDATION}_{name}": value for name, value in _summary(studied, config).items()}
    facts = {NUMERIC_PRECISION: measure.precision, "protocol": measure.protocol()}
    write_json(context.work / "report.json", _summary(tested, config) | validation | facts)


def study_variants(config: QuantizerConfig, wanted: ReconstructConfig) -> Studies:
    """Return the variants of each study, including the configured quantizer.

    There is no study of a setting that the family does not use.
    """
    families = {"family": [replace(config, family=family) for family in sorted({*wanted.families, config.family})]}
    if config.family not in LEVEL_FAMILIES:
        return families
    ranges = wanted.ranges if config.family in FIXED_FAMILIES else []
    studies = {
        "levels": [replace(config, levels=levels) for levels in sorted({*wanted.levels, config.levels})],
        "range": [replace(config, range=reach) for reach in sorted({*ranges, config.range})],
    }
    return {name: variants for name, variants in studies.items() if name != "range" or ranges} | families


def title(variant: QuantizerConfig) -> str:
    """Return a readable name of a variant. Variants that quantize in the same way have the same name."""
    if variant.family == CONTINUOUS:
        return CONTINUOUS
    if variant.family in CODEBOOK_FAMILIES:
        kind = "" if variant.family == "codebook" else f"{variant.family}, "
        return f"{kind}{variant.codebooks} x {variant.codewords} codewords"
    if variant.family in SECOND_MOMENTS:
        return f"{variant.family}, distortion {variant.distortion:g}, +-{variant.range:g}"
    reach = f", +-{variant.range:g}" if variant.family in FIXED_FAMILIES else ""
    return f"{variant.family}, {variant.levels} levels{reach}"


def study_table(studies: Studies, metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, object]]:
    """Return a row of settings and metrics for the continuous latents, and one for each distinct variant."""
    settings: dict[str, dict[str, object]] = {CONTINUOUS: {"family": CONTINUOUS, "levels": None, "range": None}}
    for variant in (variant for variants in studies.values() for variant in variants):
        reach = variant.range if variant.family in FIXED_FAMILIES else None
        levels = variant.levels if variant.family in LEVEL_FAMILIES else None
        settings[title(variant)] = {"family": variant.family, "levels": levels, "range": reach}
    return [{"quantizer": name, **row, **metrics[name]} for name, row in settings.items()]


def _fitted(context: StageContext, studies: Studies) -> dict[str, Quantizer]:
    """Return title -> quantizer for each distinct variant, fitted to the training images' moments."""
    config = context.config.quantizer
    fitting = fitting_latents(Moments(context.root / "data/moments"), config.fit_images, context.config.seed)
    trained = load_codebook(context.root / "models/vae")
    distinct = {title(variant): variant for variants in studies.values() for variant in variants}
    return {name: fit_quantizer(fitting, variant, trained) for name, variant in distinct.items()}


class Measure:
    """The measurement of reconstructions: by the VAE alone, and through the tokens of each quantizer.

    Args:
        variants: the number of quantizers on the validation images, for the progress.
    """

    def __init__(self, context: StageContext, vae: AutoencoderKL, variants: int) -> None:
        self.context, self.vae = context, vae
        self.precision = context.precision(context.config.reconstruct.precision)
        config = context.config.evaluate
        self.networks = [lite0(config, resolve_precision(config.precision, context.device)), *given_networks(config)]
        self.shards = {split: ImageShards(context.root / "data/images", split) for split in (TEST, VALIDATION)}
        count = context.config.reconstruct.images
        self.chosen = {split: balanced_subset(images.labels, count) for split, images in self.shards.items()}
        sets = (variants + 5) * len(self.networks)
        self.progress = Progress("reconstruct", sets, "sets", context.config.launcher.log_seconds)

    def reconstructions(
        self, split: str, quantizers: Mapping[str, Quantizer]
    ) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
        """Return title -> metrics of each set of reconstructions, and title -> images of it for the picture."""
        images, chosen = self.shards[split], self.chosen[split]
        pictured = balanced_subset(images.labels[chosen], PICTURED)
        originals = self._on_disk(ORIGINAL, (images.take(each)[0] for each in self._batches(chosen)), len(chosen))
        references = self._statistics(ShardImageDataset(images))
        latents = self._latents(originals)
        metrics, pictures = {}, {ORIGINAL: originals[pictured]}
        sets = {CONTINUOUS: latents} | {name: _through_tokens(each, latents) for name, each in quantizers.items()}
        for name, passed in sets.items():
            rebuilt = self._on_disk("rebuilt", self._decode(passed), len(chosen))
            found = self._statistics(rebuilt)
            distances = {each: distance(found[each], reference) for each, reference in references.items()}
            metrics[name] = {"psnr": psnr(rebuilt, originals), "ssim": ssim(rebuilt, originals)} | distances
            pictures[name] = rebuilt[pictured]
        return metrics, pictures

    def protocol(self) -> dict[str, Any]:
        """Return the protocol of the final figures, with the references and the balance of both splits."""
        labels = {split: images.labels[self.chosen[split]] for split, images in self.shards.items()}
        config = self.context.config
        facts = {"seed": config.seed, "batch_size": config.launcher.batch_size}
        validation = balance(labels[VALIDATION], len(self.shards[VALIDATION].label_names))
        return protocol(labels[TEST], self.shards, self.networks, **facts, **{VALIDATION: validation})

    def _statistics(self, images: Images) -> dict[str, Statistics]:
        """Return name of a distance -> statistics of the images."""
        found = {}
        for network in self.networks:
            found[network.distance] = statistics(network.extract(images), network.layer)
            self.progress.advance(1)
        return found

    def _on_disk(self, name: str, batches: Iterable[np.ndarray], count: int) -> np.ndarray:
        """Write images to a file and map it into memory: 50,000 of 256 pixels take 10 GB."""
        folder = self.context.work / name
        write_shard(folder, 0, count, batches)
        return np.asarray(np.load(folder / shard_name(0), mmap_mode="c"))

    def _batches(self, rows: np.ndarray) -> list[np.ndarray]:
        size = self.context.config.launcher.batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _latents(self, originals: np.ndarray) -> torch.Tensor:
        """Return the posterior means [N, C0, H, W] in VAE units."""
        with autocast(self.context.device, self.precision):
            batches = self._batches(originals)
            return torch.cat([sample_posterior(encode_moments(self.vae, batch)).cpu() for batch in batches])

    def _decode(self, latents: torch.Tensor) -> Iterator[np.ndarray]:
        for batch in latents.split(self.context.config.launcher.batch_size):
            with autocast(self.context.device, self.precision):
                yield decode_images(self.vae, batch)


def _through_tokens(quantizer: Quantizer, latents: torch.Tensor) -> torch.Tensor:
    """Return the latents after encoding to tokens and decoding."""
    normalized = quantizer.normalize(latents)
    levels = quantizer.decode(quantizer.encode(to_sequence(normalized)))
    return quantizer.denormalize(to_maps(levels, *normalized.shape[-2:]))


def _summary(metrics: Mapping[str, Mapping[str, float]], config: QuantizerConfig) -> dict[str, float]:
    """Return the metrics of the continuous VAE and of the configured quantizer as a flat dict."""
    wanted = {"continuous": metrics[CONTINUOUS], "quantized": metrics[title(config)]}
    return {f"{prefix}_{name}": value for prefix, row in wanted.items() for name, value in row.items()}
