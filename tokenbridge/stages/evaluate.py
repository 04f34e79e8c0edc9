"""Stage ``evaluate@<model>``: samples against the test images, with real train images beside them as the floor."""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from tokenbridge.config import Config, EvaluateConfig
from tokenbridge.data.shards import ImageShards
from tokenbridge.data.splits import balanced_subset
from tokenbridge.device import pick_device
from tokenbridge.evaluation.checks import check_counts, check_sample_count
from tokenbridge.evaluation.classifier import accuracy_by_class, load_classifier, predict, read_small
from tokenbridge.evaluation.features import ShardImageDataset, extract_features
from tokenbridge.evaluation.inception import check_inception, find_inception_weights, load_reference_statistics
from tokenbridge.evaluation.metrics import (
    inception_features,
    inception_metrics,
    inception_statistics,
    sample_metrics,
)
from tokenbridge.files import write_csv, write_json
from tokenbridge.progress import Progress
from tokenbridge.stages.runtime import StageRun, stage_run

ImageSets = dict[str, Dataset[Tensor]]


def main() -> None:
    name = sys.argv[1]
    with stage_run(f"evaluate@{name}") as run:
        samples = ImageShards(run.root / "data/samples" / name, "samples")
        train, test = (ImageShards(run.root / "data/images", split) for split in ("train", "test"))
        _check(run.config, len(samples), len(train), len(test))
        model = load_classifier(run.root / "models/classifier").to(pick_device(run.config.launcher))
        floor = ShardImageDataset(train, balanced_subset(train.labels, len(samples)))
        sets: ImageSets = {"": ShardImageDataset(samples), "floor_": floor, "test": ShardImageDataset(test)}
        metrics = {"samples": len(samples), **_distances(run.config, sets)}
        if run.config.evaluate.inception_weights is not None:
            metrics |= _inception(
                run.config.evaluate, find_inception_weights(run.config.evaluate.inception_weights), sets
            )
        images, labels = read_small(samples)
        predicted = predict(model, images)
        metrics["class_accuracy"] = float((predicted == labels).mean())
        write_json(run.work / "metrics.json", metrics)
        names = samples.label_names
        pairs = [{"actual": names[a], "predicted": names[p]} for a, p in zip(labels, predicted, strict=True)]
        by_class = accuracy_by_class(predicted, labels, names)
        _publish_rows(run, name, "confusion.csv", pairs)
        _publish_rows(run, name, "class_accuracy.csv", [{"class": c, "accuracy": a} for c, a in by_class.items()])
        run.publish(run.work / "metrics.json", f"reports/evaluate/{name}.json")


def _check(config: Config, samples: int, train: int, test: int) -> None:
    """Everything that can be found wrong before the first image is looked at."""
    check_inception(config.evaluate)
    check_sample_count(samples, config.generate.samples)
    check_counts(config.evaluate, samples, train, test)


def _distances(config: Config, sets: ImageSets) -> dict[str, float]:
    """The metrics of the samples and, under ``floor_`` names, of as many real train images."""
    progress = Progress("evaluate", len(sets), "sets of images", config.launcher.log_seconds)
    features = {}
    for prefix, images in sets.items():
        features[prefix] = extract_features(images, config.evaluate.feature_size)
        progress.advance(1)
    reference = features.pop("test")
    return {
        f"{prefix}{metric}": value
        for prefix, seen in features.items()
        for metric, value in sample_metrics(seen, reference, config.evaluate).items()
    }


def _inception(config: EvaluateConfig, weights: Path, sets: ImageSets) -> dict[str, float]:
    """The same with Inception: against the settings' statistics, or those of the test images."""
    if config.inception_reference is not None:
        reference = load_reference_statistics(Path(config.inception_reference).expanduser())
    else:
        reference = inception_statistics(inception_features(sets["test"], weights))
    return {
        f"{prefix}{metric}": value
        for prefix in ("", "floor_")
        for metric, value in inception_metrics(inception_features(sets[prefix], weights), reference).items()
    }


def _publish_rows(run: StageRun, model: str, file: str, rows: list[dict[str, Any]]) -> None:
    path = run.work / file
    write_csv(path, rows)
    run.publish(path, f"reports/evaluate/{model}/{file}")


if __name__ == "__main__":
    main()
