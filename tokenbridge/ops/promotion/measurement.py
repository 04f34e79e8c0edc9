"""Measurements of a version that can be compared with those of another version.

Both versions have the same classes, seeds, settings and number of samples, the same extractor and the same validation
images. The test images are not used, because a promotion is a choice between models. All results are computed once and
kept under ``.work/promotion``.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tokenbridge.base.device import autocast, pick_device, resolve_precision
from tokenbridge.base.files import atomic_path, read_json, sha256_tree, write_json
from tokenbridge.classifier.network import load_classifier, predict, read_small
from tokenbridge.config import Config
from tokenbridge.config.params import flatten
from tokenbridge.evaluation.checks import check_counts
from tokenbridge.evaluation.features import Features, ShardImageDataset, extract_features, register
from tokenbridge.evaluation.metrics import inception_score, sample_metrics
from tokenbridge.images import VALIDATION
from tokenbridge.images.shards import MANIFEST, ImageShards, image_counts, read_manifest
from tokenbridge.infra.dvc import LockedStage, is_code, md5_as_dvc, read_lock, read_stages
from tokenbridge.infra.tracking.registry import Registry, Version
from tokenbridge.ops.promotion import PromotionError
from tokenbridge.ops.promotion.comparison import SampleSet
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.samples import draw_chunks, draw_samples, write_samples
from tokenbridge.stages.runtime import WORK

ACCURACY = "class_accuracy"
NOT_OF_SAMPLES = "grid_per_class"  # the one setting of generate.* that changes only a picture


@dataclass(frozen=True)
class Measurement:
    """The samples and metrics of one version.

    Attributes:
        compared: what ``comparison`` needs of the samples.
        metrics: the metrics of the samples, as ``evaluate`` names them.
    """

    samples: ImageShards
    compared: SampleSet
    metrics: dict[str, float]

    def figure(self, kind: str) -> float:
        """Return the metric of this kind, such as ``precision``, for whichever extractor its name contains."""
        return next(value for name, value in self.metrics.items() if name.startswith(f"{kind}_"))


class Bench:
    """A bench that measures models with the project's settings ``generate``, ``evaluate`` and ``seed``.

    Raises:
        UserError: at once, if the images, the classifier or the counts do not allow a measurement.
    """

    def __init__(self, root: Path, config: Config) -> None:
        self.root, self.config, self.folder = root, config, root / WORK / "promotion"
        self.validation = ImageShards(root / "data/images", VALIDATION)
        counts = image_counts(read_manifest(root / "data/images"))
        check_counts(config.evaluate, config.generate.samples, counts)
        self.classifier_folder = root / "models/classifier"
        self.device = pick_device(config.launcher)
        self.classifier = load_classifier(self.classifier_folder).to(self.device)
        self.settings = {"seed": config.seed, "generate": _of_samples(asdict(config.generate))}
        self.precision = resolve_precision(config.evaluate.precision, self.device)
        self.drawing_precision = resolve_precision(config.generate.precision, self.device)

    def load(self, folder: Path) -> TokenBridgePipeline:
        """Return the pipeline in ``folder``, if it draws the classes and the size of the validation images.

        Raises:
            PromotionError: if it draws other classes or another size.
        """
        pipeline = TokenBridgePipeline.from_pretrained(folder).to(self.device)
        size = (self.validation.image_size, self.validation.image_size)
        if pipeline.class_names != self.validation.label_names or pipeline.image_size != size:
            raise PromotionError(
                f"{folder} draws {pipeline.image_size} pixels of {', '.join(pipeline.class_names[:5])}...: data/images "
                "has other classes or another size, so choose the `data` that it was trained on"
            )
        return pipeline

    def load_version(self, registry: Registry, model: str, version: Version) -> TokenBridgePipeline:
        """Return the version's pipeline: the workspace's ``model`` if it has the same digest, else one downloaded once.

        Raises:
            UserError: as ``load``, or if the store no longer has the version.
        """
        here = self.root / "models" / model
        if here.exists() and md5_as_dvc(here) == version.md5:
            return self.load(here)
        kept = self.folder / f"model-{version.md5.removesuffix('.dir')}"
        registry.fetch(version, kept)
        return self.load(kept)

    def measure(self, pipeline: TokenBridgePipeline, md5: str) -> Measurement:
        """Return samples, features and metrics of the model with this digest."""
        folder = self._workspace_samples(md5) or self._draw(pipeline, md5)
        samples = ImageShards(folder, "samples")
        about = [
            samples.digest,
            self.validation.digest,
            asdict(self.config.evaluate),
            sha256_tree(self.classifier_folder),
            self.precision,
        ]
        kept = self.folder / f"evaluation-{digest_of(about, self._code('evaluate'))}"
        if not kept.exists():
            with atomic_path(kept) as target:
                target.mkdir()
                self._evaluate(samples, target)
        tensors = load_file(kept / "samples.safetensors")
        compared = SampleSet(tensors["pooled"], tensors["correct"].bool().numpy())
        return Measurement(samples, compared, read_json(kept / "metrics.json"))

    @cached_property
    def reference(self) -> Features:
        """Features of the validation images."""
        size = self.config.evaluate.feature_size
        digest = digest_of(self.validation.digest, register(size), self.precision)
        kept = self.folder / f"{VALIDATION}-{digest}.safetensors"
        if not kept.exists():
            print("promotion: features of the validation images", flush=True)
            with atomic_path(kept) as target:
                save_file(extract_features(ShardImageDataset(self.validation), size, precision=self.precision), target)
        return load_file(kept)

    def settings_record(self) -> dict[str, Any]:
        """Return the settings that a measurement depends on, by their dotted names."""
        settings = flatten(self.settings | {"evaluate": asdict(self.config.evaluate)})
        return settings | {"validation_images": self.validation.digest[:16]}

    def _evaluate(self, samples: ImageShards, target: Path) -> None:
        print(f"promotion: features and metrics of {len(samples)} samples", flush=True)
        features = extract_features(
            ShardImageDataset(samples), self.config.evaluate.feature_size, precision=self.precision
        )
        correct = predict(self.classifier, read_small(samples)) == samples.labels
        config = self.config.evaluate
        metrics = sample_metrics(features, self.reference, config) | inception_score(features, config)
        metrics[ACCURACY] = float(correct.mean())
        save_file({"pooled": features["pooled"], "correct": torch.from_numpy(correct)}, target / "samples.safetensors")
        write_json(target / "metrics.json", metrics)

    def _draw(self, pipeline: TokenBridgePipeline, md5: str) -> Path:
        config = self.config
        kept = self.folder / f"samples-{digest_of(md5, self.settings, self.drawing_precision, self._code('generate'))}"
        if not (kept / MANIFEST).exists():
            drawn = kept / "drawn"
            with autocast(self.device, self.drawing_precision):
                draw_chunks(pipeline, drawn, config.seed, config.generate, config.launcher)
            shape = (self.validation.image_size, config.generate.samples, config.data.shard_size)
            write_samples(kept, drawn, pipeline.class_names, *shape, self.drawing_precision)
            shutil.rmtree(drawn)
        return kept

    def _workspace_samples(self, md5: str) -> Path | None:
        """Return the samples in data/samples that dvc.lock records for this model, settings and code, or None."""
        lock = read_lock(self.root)
        for stage, record in lock.items():
            name = stage.removeprefix("generate@")
            if stage == name or record.deps.get(f"models/{name}") != md5:
                continue
            params = {"seed": record.params["seed"], "generate": _of_samples(record.params["generate"])}
            out = f"data/samples/{name}"
            if params != self.settings or not _still_so(self.root, record, out):
                continue
            if read_manifest(self.root / out)["precision"] == self.drawing_precision:
                return self.root / out
        return None

    def _code(self, kind: str) -> dict[str, str]:
        """Return the digests of the modules that dvc.yaml names for ``generate`` or ``evaluate``."""
        stage = next(stage for name, stage in self._stages.items() if name.startswith(f"{kind}@"))
        return {path: digest for path, digest in stage.deps.items() if is_code(path)}

    @cached_property
    def _stages(self) -> Mapping[str, Any]:
        return read_stages(self.root)

    def seconds_per_image(self, pipelines: Sequence[TokenBridgePipeline]) -> list[list[float]]:
        """Return one time for each round, for each pipeline.

        The pipelines draw in turn, and their order is reversed every round, so that a busy machine affects all alike.
        """
        images, rounds = self.config.promotion.timing_images, self.config.promotion.timing_rounds
        seconds: list[list[float]] = [[] for _ in pipelines]
        for number in range(rounds + 1):
            turns = list(zip(pipelines, seconds, strict=True))
            for pipeline, taken in turns[:: -1 if number % 2 else 1]:
                started = time.perf_counter()
                with autocast(self.device, self.drawing_precision):
                    draw_samples(pipeline, list(range(images)), self.config.seed, self.config.generate)
                taken.append((time.perf_counter() - started) / images)
        return [taken[1:] for taken in seconds]  # the first round warms up


def is_finite(pipeline: TokenBridgePipeline) -> bool:
    """Return whether no weight is NaN or infinite."""
    parts = (pipeline.transformer, pipeline.vae, pipeline.quantizer)
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _of_samples(generate: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in generate.items() if name != NOT_OF_SAMPLES}


def _still_so(root: Path, record: LockedStage, out: str) -> bool:
    """Return whether the samples and the code that drew them still have the recorded digests."""
    recorded = {path: md5 for path, md5 in record.deps.items() if is_code(path)} | {out: record.outs[out]}
    return all((root / path).exists() and md5_as_dvc(root / path) == md5 for path, md5 in recorded.items())
