"""Measurements of a version that can be compared with those of another version.

Both versions have the same classes, seeds, settings and number of samples, the same extractor and the same validation
images. The test images are not used, because a promotion is a choice between models. The stage ``generate`` draws the
samples, which are kept under ``.work/promotion``.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenbridge.base.device import pick_device, resolve_precision
from tokenbridge.classifier.network import WEIGHTS, class_accuracy, load_classifier, predict, read_small
from tokenbridge.config import Config
from tokenbridge.config.model import sampling_mistakes
from tokenbridge.config.params import flatten, load_params
from tokenbridge.config.types import refuse
from tokenbridge.evaluation.checks import check_counts
from tokenbridge.evaluation.features import POOLED, Features, ShardImageDataset
from tokenbridge.evaluation.metrics import sample_metrics
from tokenbridge.evaluation.networks import lite0
from tokenbridge.evaluation.protocol import protocol, sample_facts
from tokenbridge.images import VALIDATION
from tokenbridge.images.shards import ImageShards, image_counts, read_manifest
from tokenbridge.infra.dvc import StageSpec, md5_as_dvc, read_lock, read_stages
from tokenbridge.infra.tracking.registry import Registry, Version
from tokenbridge.ops.promotion import PromotionError
from tokenbridge.ops.promotion.comparison import SampleSet
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.sampler import head_mistakes
from tokenbridge.sampling.samples import draw_samples
from tokenbridge.stages import generate
from tokenbridge.stages.context import METRICS, MetricFile, StageContext
from tokenbridge.stages.runtime import WORK

logger = logging.getLogger(__name__)

ACCURACY = "class_accuracy"
CLASSIFIER = "models/classifier"


@dataclass(frozen=True)
class Measurement:
    """The samples and metrics of one version.

    Attributes:
        picture: the file with a row of samples for each of the first classes.
        compared: what ``comparison`` needs of the samples.
        metrics: the metrics of the samples, as ``evaluate`` names them.
        protocol: as in the report of ``evaluate``, with the validation images as the only reference.
    """

    picture: Path
    compared: SampleSet
    metrics: dict[str, float]
    protocol: dict[str, Any]

    def figure(self, kind: str) -> float:
        """Return the metric of this kind, such as ``precision``, for whichever extractor its name contains."""
        return next(value for name, value in self.metrics.items() if name.startswith(f"{kind}_"))


def settings_for_versions(root: Path, model: str, changes: Sequence[str]) -> Config:
    """Read params.yaml with ``changes``. A version may have another trunk: ``load`` checks what it can follow."""
    known = model in load_params(root).models
    return load_params(root, [*([f"models.{model}.pretrained=registry"] if known else []), *changes])


class Bench:
    """A bench that measures versions of one model with the project's settings ``generate``, ``evaluate`` and ``seed``.

    Args:
        model: its key in params.yaml.

    Raises:
        UserError: at once, if the images, the classifier or the counts do not allow a measurement.
    """

    def __init__(self, root: Path, config: Config, registry: Registry, model: str) -> None:
        self.root, self.config, self.registry, self.model = root, config, registry, model
        self.folder = root / WORK / "promotion"
        self.stages = read_stages(root)
        self.validation = ImageShards(root / "data/images", VALIDATION)
        counts = image_counts(read_manifest(root / "data/images"))
        check_counts(config.evaluate, config.generate.samples, counts)
        self.device = pick_device(config.launcher)
        self.classifier = load_classifier(root / CLASSIFIER).to(self.device)
        self.settings = {"seed": config.seed, "generate": asdict(config.generate)}
        self.network = lite0(config.evaluate, resolve_precision(config.evaluate.precision, self.device))
        self.drawing_precision = resolve_precision(config.generate.precision, self.device)

    def load(self, version: Version) -> TokenBridgePipeline:
        """Return the version's pipeline, if it draws the classes and the size of the validation images.

        Raises:
            UserError: if it draws other classes or another size, cannot follow the settings, or the store no longer has
                the version.
        """
        pipeline = TokenBridgePipeline.from_pretrained(self._home(version) / "models" / self.model).to(self.device)
        size = (self.validation.image_size, self.validation.image_size)
        if pipeline.class_names != self.validation.label_names or pipeline.image_size != size:
            raise PromotionError(
                f"{version} draws {pipeline.image_size} pixels of {', '.join(pipeline.class_names[:5])}...: "
                "data/images has other classes or another size, so choose the `data` that it was trained on"
            )
        transformer = pipeline.transformer
        settings = self.config.generate
        mistakes = sampling_mistakes(transformer.trunk, settings, transformer.units)
        mistakes |= head_mistakes(transformer, settings)
        refuse({f"{version} cannot be drawn: generate.{message}": wrong for message, wrong in mistakes.items()})
        pipeline.precision = self.drawing_precision
        return pipeline

    def measure(self, version: Version) -> Measurement:
        """Return the samples and metrics of a version. Samples that were drawn before are not drawn again."""
        folder, picture = self._workspace_samples(version) or self._draw(version)
        samples, config = ImageShards(folder, "samples"), self.config.evaluate
        logger.info(f"promotion: features and metrics of {len(samples)} samples of {version}")
        features = self._features(samples)
        correct = predict(self.classifier, read_small(samples)) == samples.labels
        metrics = sample_metrics(features, self.reference, config) | self.network.scores(features)
        compared, drawn = SampleSet(features[POOLED], correct), read_manifest(folder)
        facts = sample_facts(self.config, drawn, self.root / CLASSIFIER / WEIGHTS)
        about = protocol(samples.labels, {VALIDATION: self.validation}, [self.network], **facts)
        return Measurement(picture, compared, metrics | {ACCURACY: float(correct.mean())}, about)

    @cached_property
    def reference(self) -> Features:
        """Features of the validation images."""
        logger.info("promotion: features of the validation images")
        return self._features(self.validation)

    @cached_property
    def real_accuracy(self) -> float:
        """The class accuracy of the validation images."""
        return class_accuracy(self.classifier, read_small(self.validation), self.validation.labels)

    def settings_record(self) -> dict[str, Any]:
        """Return the settings that a measurement depends on, by their dotted names."""
        settings = flatten(self.settings | {"evaluate": asdict(self.config.evaluate)})
        return settings | {"validation_images": self.validation.digest[:16]}

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
                draw_samples(pipeline, list(range(images)), self.config.seed, self.config.generate)
                taken.append((time.perf_counter() - started) / images)
        return [taken[1:] for taken in seconds]  # the first round warms up

    def _features(self, images: ImageShards) -> Features:
        return self.network.extract(ShardImageDataset(images))

    def _home(self, version: Version) -> Path:
        """Return the folder with the version under ``models``: the project's, or one that it is downloaded to once."""
        here = self.root / "models" / self.model
        if here.exists() and md5_as_dvc(here) == version.md5:
            return self.root
        home = self.folder / version.md5.removesuffix(".dir")
        self.registry.fetch(version, home / "models" / self.model)
        return home

    def _draw(self, version: Version) -> tuple[Path, Path]:
        stage = self._generate(version)
        work = self.folder / f"samples-{stage.key}-{self.drawing_precision}"
        drawn, picture = work / "drawn", work / "grid.png"  # the stage's first and last outs
        if drawn.exists() or not picture.exists():
            work.mkdir(parents=True, exist_ok=True)
            sink = MetricFile(work / METRICS)
            generate.work(StageContext(stage.name, self.config, self._home(version), work, sink, self.device))
            shutil.rmtree(drawn)
        return work / "samples", picture

    def _workspace_samples(self, version: Version) -> tuple[Path, Path] | None:
        """Return data/samples and its picture if dvc.lock records them for this model, settings and code, or None."""
        stage = self._generate(version)
        record = read_lock(self.root).get(stage.name)
        if record is None or (record.params, record.deps) != (stage.params, stage.deps):
            return None
        outs = {self.root / out: md5 for out, md5 in record.outs.items()}
        if any(not out.exists() or md5_as_dvc(out) != md5 for out, md5 in outs.items()):
            return None
        samples, picture = (
            self.root / path for path in (f"data/samples/{self.model}", f"reports/samples/{self.model}.png")
        )
        return (samples, picture) if read_manifest(samples)["precision"] == self.drawing_precision else None

    def _generate(self, version: Version) -> StageSpec:
        """Return the stage ``generate`` as it would be for this version and these settings."""
        stage = next(stage for name, stage in self.stages.items() if name.startswith("generate@"))
        others = {path: md5 for path, md5 in stage.deps.items() if not path.startswith("models/")}
        deps = others | {f"models/{self.model}": version.md5}
        return replace(stage, name=f"generate@{self.model}", params=self.settings, deps=deps)
