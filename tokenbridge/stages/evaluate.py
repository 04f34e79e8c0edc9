"""Stage ``evaluate@<model>``: samples against the test images, with real train images beside them as the floor."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tokenbridge.config import Config
from tokenbridge.data.shards import ImageShards
from tokenbridge.data.splits import balanced_subset
from tokenbridge.evaluation.checks import check_counts, check_sample_count
from tokenbridge.evaluation.classifier import accuracy_by_class, load_classifier, shared_predictions
from tokenbridge.evaluation.features import Features, ShardImageDataset, extract_features, shared_features
from tokenbridge.evaluation.inception import check_inception, find_inception_weights, load_reference_statistics
from tokenbridge.evaluation.metrics import (
    inception_features,
    inception_metrics,
    inception_statistics,
    sample_metrics,
)
from tokenbridge.files import write_csv, write_json
from tokenbridge.stages.job import Job, compute
from tokenbridge.stages.runtime import stage_run

SAMPLES, FLOOR, TEST = "samples", "floor", "test"  # as many real train images are the floor
PREFIXES = {SAMPLES: "", FLOOR: "floor_"}  # of a set's metrics

ImageSets = dict[str, Dataset[Tensor]]
Extract = Callable[[Dataset[Tensor]], Features]


def main() -> None:
    name = sys.argv[1]
    with stage_run(f"evaluate@{name}") as run:
        samples, train, test = _shards(run.root, name)
        _check(run.config, len(samples), len(train), len(test))
        compute(run, work)
        for file in ("confusion.csv", "class_accuracy.csv"):
            run.publish(run.work / file, f"reports/evaluate/{name}/{file}")
        run.publish(run.work / "metrics.json", f"reports/evaluate/{name}.json")


def work(job: Job) -> None:
    """Write ``metrics.json``, ``confusion.csv`` and ``class_accuracy.csv``; features come from all processes."""
    samples, train, test = _shards(job.root, job.item)
    floor = ShardImageDataset(train, balanced_subset(train.labels, len(samples)))
    sets: ImageSets = {SAMPLES: ShardImageDataset(samples), FLOOR: floor, TEST: ShardImageDataset(test)}
    config = job.config.evaluate
    lite0 = _features(job, sets, "lite0", partial(extract_features, size=config.feature_size))
    inception = None
    if config.inception_weights is not None:
        weights = find_inception_weights(config.inception_weights)
        needed = {name: images for name, images in sets.items() if name != TEST or config.inception_reference is None}
        inception = _features(job, needed, "inception", partial(inception_features, weights=weights))
    predicted = _predictions(job, samples)
    if lite0 is None or predicted is None:  # the first process has them
        return
    metrics: dict[str, float] = {"samples": len(samples)}
    for name, prefix in PREFIXES.items():
        metrics |= _prefixed(prefix, sample_metrics(lite0[name], lite0[TEST], config))
    if inception is not None:
        metrics |= _inception(job, inception)
    metrics["class_accuracy"] = _classify(job, samples, predicted)
    write_json(job.work / "metrics.json", metrics)


def _shards(root: Path, model: str) -> tuple[ImageShards, ImageShards, ImageShards]:
    """The samples, the train and the test images."""
    images = root / "data/images"
    return (
        ImageShards(root / "data/samples" / model, "samples"),
        ImageShards(images, "train"),
        ImageShards(images, "test"),
    )


def _check(config: Config, samples: int, train: int, test: int) -> None:
    """Everything that can be found wrong before the first image is looked at."""
    check_inception(config.evaluate)
    check_sample_count(samples, config.generate.samples)
    check_counts(config.evaluate, samples, train, test)


def _features(job: Job, sets: ImageSets, extractor: str, extract: Extract) -> dict[str, Features] | None:
    """Of each set of images; None but in the first process."""
    seen = {
        name: shared_features(
            name, images, extract, job.work / extractor, processes=job.processes, launcher=job.config.launcher
        )
        for name, images in sets.items()
    }
    features = {name: each for name, each in seen.items() if each is not None}
    return features or None


def _inception(job: Job, features: dict[str, Features]) -> dict[str, float]:
    """The same with Inception: against the settings' statistics, or those of the test images."""
    reference_file = job.config.evaluate.inception_reference
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


def _predictions(job: Job, samples: ImageShards) -> NDArray[np.int64] | None:
    """What the classifier sees in the samples; None but in the first process."""
    model = load_classifier(job.root / "models/classifier").to(job.device)
    folder, launcher = job.work / "classes", job.config.launcher
    return shared_predictions(model, samples, folder, processes=job.processes, launcher=launcher)


def _classify(job: Job, samples: ImageShards, predicted: NDArray[np.int64]) -> float:
    """Write what the classifier sees in the samples; its accuracy."""
    labels, names = samples.labels, samples.label_names
    pairs = [{"actual": names[a], "predicted": names[p]} for a, p in zip(labels, predicted, strict=True)]
    by_class = accuracy_by_class(predicted, labels, names)
    write_csv(job.work / "confusion.csv", pairs)
    write_csv(job.work / "class_accuracy.csv", [{"class": c, "accuracy": a} for c, a in by_class.items()])
    return float((predicted == labels).mean())


if __name__ == "__main__":
    main()
