"""Stage ``evaluate@<model>``: samples against the validation and the test images, with real images as the floor.

Settings are chosen by the metrics against the validation images. Metrics against the test images are final figures.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tokenbridge.base.files import write_csv, write_json
from tokenbridge.classifier.network import accuracy_by_class, load_classifier, shared_predictions
from tokenbridge.config import Config
from tokenbridge.evaluation.checks import check_counts, check_sample_count
from tokenbridge.evaluation.features import Features, ShardImageDataset, extract_features, shared_features
from tokenbridge.evaluation.inception import check_inception, find_inception_weights, load_reference_statistics
from tokenbridge.evaluation.metrics import (
    inception_features,
    inception_metrics,
    inception_score,
    inception_statistics,
    sample_metrics,
)
from tokenbridge.images import TEST, TRAIN, VALIDATION
from tokenbridge.images.shards import ImageShards, read_manifest
from tokenbridge.images.splits import balanced_subset
from tokenbridge.stages.context import NUMERIC_PRECISION, StageContext, compute
from tokenbridge.stages.runtime import stage_run

SAMPLES, FLOOR = "samples", "floor"  # the floor: the same number of real training images
PREFIXES = {SAMPLES: "", FLOOR: "floor_"}  # set of images -> prefix of its metrics
REFERENCES = {TEST: "", VALIDATION: f"{VALIDATION}_"}  # reference set -> prefix of the metrics against it

ImageSets = dict[str, Dataset[Tensor]]
Extract = Callable[[Dataset[Tensor]], Features]


def main() -> None:
    name = sys.argv[1]
    with stage_run(f"evaluate@{name}") as run:
        _check(run.config, {split: len(images) for split, images in _shards(run.root, name).items()})
        compute(run, work)
        for file in ("confusion.csv", "class_accuracy.csv"):
            run.publish(run.work / file, f"reports/evaluate/{name}/{file}")
        run.publish(run.work / "metrics.json", f"reports/evaluate/{name}.json")


def work(context: StageContext) -> None:
    """Write ``metrics.json``, ``confusion.csv`` and ``class_accuracy.csv``; all processes compute features."""
    shards, config = _shards(context.root, context.item), context.config.evaluate
    samples, train = shards[SAMPLES], shards[TRAIN]
    floor = ShardImageDataset(train, balanced_subset(train.labels, len(samples)))
    sets: ImageSets = {name: ShardImageDataset(shards[name]) for name in (SAMPLES, *REFERENCES)}
    sets[FLOOR] = floor
    precision = context.precision(config.precision)
    extract = partial(extract_features, size=config.feature_size, precision=precision)
    lite0 = _features(context, sets, "lite0", extract)
    inception = None
    if config.inception_weights is not None:
        weights = find_inception_weights(config.inception_weights)
        needed = {name: sets[name] for name in (*PREFIXES, *([TEST] if config.inception_reference is None else []))}
        inception = _features(context, needed, "inception", partial(inception_features, weights=weights))
    predicted = _predictions(context, samples)
    if lite0 is None or predicted is None:  # only the first process has them
        return
    metrics: dict[str, float] = {"samples": len(samples)}
    for name, prefix in PREFIXES.items():
        metrics |= _prefixed(prefix, inception_score(lite0[name], config))
        for reference, reference_prefix in REFERENCES.items():
            metrics |= _prefixed(reference_prefix + prefix, sample_metrics(lite0[name], lite0[reference], config))
    if inception is not None:
        metrics |= _inception(context, inception)
    metrics["class_accuracy"] = _classify(context, samples, predicted)
    samples_precision = read_manifest(context.root / "data/samples" / context.item)["precision"]
    precisions = {NUMERIC_PRECISION: precision, f"samples_{NUMERIC_PRECISION}": samples_precision}
    write_json(context.work / "metrics.json", metrics | precisions)


def _shards(root: Path, model: str) -> dict[str, ImageShards]:
    """Return the samples, and the real images of each split."""
    images = {split: ImageShards(root / "data/images", split) for split in (TRAIN, VALIDATION, TEST)}
    return images | {SAMPLES: ImageShards(root / "data/samples" / model, SAMPLES)}


def _check(config: Config, counts: Mapping[str, int]) -> None:
    """Check everything that can be checked before the first image is read."""
    check_inception(config.evaluate)
    check_sample_count(counts[SAMPLES], config.generate.samples)
    check_counts(config.evaluate, counts[SAMPLES], counts)


def _features(context: StageContext, sets: ImageSets, extractor: str, extract: Extract) -> dict[str, Features] | None:
    """Return the features of each set of images in the first process, None in the others."""
    seen = {
        name: shared_features(
            name,
            images,
            extract,
            context.work / extractor,
            processes=context.processes,
            launcher=context.config.launcher,
        )
        for name, images in sets.items()
    }
    features = {name: each for name, each in seen.items() if each is not None}
    return features or None


def _inception(context: StageContext, features: dict[str, Features]) -> dict[str, float]:
    """Return Inception's metrics: against the statistics that the settings name, or those of the test images."""
    reference_file = context.config.evaluate.inception_reference
    if reference_file is not None:
        reference = load_reference_statistics(Path(reference_file).expanduser())
    else:
        reference = inception_statistics(features[TEST])
    metrics: dict[str, float] = {}
    for name, prefix in PREFIXES.items():
        metrics |= _prefixed(prefix, inception_metrics(features[name], reference))
    return metrics


def _prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def _predictions(context: StageContext, samples: ImageShards) -> NDArray[np.int64] | None:
    """Return the classes that the classifier predicts for the samples in the first process, None in the others."""
    model = load_classifier(context.root / "models/classifier").to(context.device)
    folder, launcher = context.work / "classes", context.config.launcher
    return shared_predictions(model, samples, folder, processes=context.processes, launcher=launcher)


def _classify(context: StageContext, samples: ImageShards, predicted: NDArray[np.int64]) -> float:
    """Write the classifier's predictions and accuracy by class. Return the accuracy."""
    labels, names = samples.labels, samples.label_names
    pairs = [{"actual": names[a], "predicted": names[p]} for a, p in zip(labels, predicted, strict=True)]
    by_class = accuracy_by_class(predicted, labels, names)
    write_csv(context.work / "confusion.csv", pairs)
    write_csv(context.work / "class_accuracy.csv", [{"class": c, "accuracy": a} for c, a in by_class.items()])
    return float((predicted == labels).mean())


if __name__ == "__main__":
    main()
