"""Stage ``evaluate@<model>``: samples against the validation and the test images, with real images as the floor.

Settings are chosen by the metrics against the validation images. Metrics against the test images are final figures.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from tokenbridge.base.files import sha256_file, write_csv, write_json
from tokenbridge.base.image_grid import image_grid
from tokenbridge.classifier.network import WEIGHTS, accuracy_by_class, load_classifier, shared_predictions
from tokenbridge.config import Config
from tokenbridge.evaluation.checks import check_counts, check_sample_count
from tokenbridge.evaluation.features import POOLED, ShardImageDataset, feature_files, read_features
from tokenbridge.evaluation.metrics import distance, extractor_name, sample_metrics, statistics
from tokenbridge.evaluation.neighbours import memorisation, nearest
from tokenbridge.evaluation.networks import Network, given_networks, lite0
from tokenbridge.evaluation.protocol import protocol, sample_facts
from tokenbridge.evaluation.weight_files import check_networks
from tokenbridge.images import TEST, TRAIN, VALIDATION
from tokenbridge.images.shards import ImageShards, read_manifest
from tokenbridge.images.splits import balanced_subset
from tokenbridge.stages.context import NUMERIC_PRECISION, StageContext, compute
from tokenbridge.stages.runtime import stage_run

SAMPLES, FLOOR = "samples", "floor"  # the floor: the same number of real training images
PREFIXES = {SAMPLES: "", FLOOR: "floor_"}  # set of images -> prefix of its metrics
REFERENCES = {TEST: "", VALIDATION: f"{VALIDATION}_"}  # reference set -> prefix of the metrics against it
SEARCHED = 10  # training images for each sample among which its nearest ones are searched, which bounds the time
NEIGHBOURS = 5  # nearest training images in the picture, beside each sample
PICTURED = 10  # samples in the picture: those that are closest to a training image

ImageSets = dict[str, ShardImageDataset]
FeatureFiles = dict[str, list[Path]]


def main(name: str) -> None:
    with stage_run(f"evaluate@{name}") as run:
        _check(run.config, {split: len(images) for split, images in _shards(run.root, name).items()})
        compute(run, work)
        for file in ("confusion.csv", "class_accuracy.csv", "nearest.png"):
            run.publish(run.work / file, f"reports/evaluate/{name}/{file}")
        run.publish(run.work / "metrics.json", f"reports/evaluate/{name}.json")


def work(context: StageContext) -> None:
    """Write ``metrics.json``, ``nearest.png``, ``confusion.csv`` and ``class_accuracy.csv``; all processes compute
    features.
    """
    shards, config = _shards(context.root, context.item), context.config.evaluate
    samples, train = shards[SAMPLES], shards[TRAIN]
    chosen = {FLOOR: len(samples), TRAIN: SEARCHED * len(samples)}
    sets = {name: ShardImageDataset(each) for name, each in shards.items()}
    sets |= {name: ShardImageDataset(train, balanced_subset(train.labels, count)) for name, count in chosen.items()}
    network, given = lite0(config, context.precision(config.precision)), given_networks(config)
    files = _files(context, sets, network)
    others = [(each, _files(context, _needed(sets, each), each)) for each in given]
    predicted = _predictions(context, samples)
    if predicted is None:  # only the first process has them
        return
    metrics: dict[str, float] = {"samples": len(samples)}
    metrics |= _lite0_metrics(context, files, network)
    for each, its_files in others:
        metrics |= _distances(its_files, each)
    metrics |= _memorisation(context, sets, files)
    metrics["class_accuracy"] = _classify(context, samples, predicted)
    drawn = read_manifest(context.root / "data/samples" / context.item)
    precisions = {NUMERIC_PRECISION: network.precision, f"samples_{NUMERIC_PRECISION}": drawn["precision"]}
    references = {name: shards[name] for name in (*REFERENCES, TRAIN)}
    reference_files = {each.distance: sha256_file(each.reference_file) for each in given if each.reference_file}
    facts = {
        **sample_facts(context.config, drawn, context.root / "models/classifier" / WEIGHTS),
        "searched": len(sets[TRAIN]),
        "reference_files": reference_files,
    }
    about = protocol(samples.labels, references, [network, *given], **facts)
    write_json(context.work / "metrics.json", metrics | precisions | {"protocol": about})


def _shards(root: Path, model: str) -> dict[str, ImageShards]:
    """Return the samples, and the real images of each split."""
    images = {split: ImageShards(root / "data/images", split) for split in (TRAIN, VALIDATION, TEST)}
    return images | {SAMPLES: ImageShards(root / "data/samples" / model, SAMPLES)}


def _check(config: Config, counts: Mapping[str, int]) -> None:
    """Check everything that can be checked before the first image is read."""
    check_networks(config.evaluate)
    check_sample_count(counts[SAMPLES], config.generate.samples)
    check_counts(config.evaluate, counts[SAMPLES], counts)


def _files(context: StageContext, sets: ImageSets, network: Network) -> FeatureFiles:
    """Return the files with the features of each set of images; the processes share the work."""
    launcher, processes = context.config.launcher, context.processes
    folder = context.work / network.distance
    return {
        name: feature_files(name, images, network.extract, folder, processes=processes, launcher=launcher)
        for name, images in sets.items()
    }


def _needed(sets: ImageSets, network: Network) -> ImageSets:
    """Return the sets that ``_distances`` needs."""
    return {name: sets[name] for name in (*PREFIXES, *([] if network.reference_file else [TEST]))}


def _lite0_metrics(context: StageContext, files: FeatureFiles, network: Network) -> dict[str, float]:
    """Return all metrics of samples and floor."""
    features = {name: read_features(files[name]) for name in (*PREFIXES, *REFERENCES)}
    metrics: dict[str, float] = {}
    for name, prefix in PREFIXES.items():
        metrics |= _prefixed(prefix, network.scores(features[name]))
        for reference, reference_prefix in REFERENCES.items():
            found = sample_metrics(features[name], features[reference], context.config.evaluate)
            metrics |= _prefixed(reference_prefix + prefix, found)
    return metrics


def _distances(files: FeatureFiles, network: Network) -> dict[str, float]:
    """Return the distance and the score of samples and floor."""
    features = {name: read_features(each) for name, each in files.items()}
    reference = network.reference(features.get(TEST))
    metrics: dict[str, float] = {}
    for name, prefix in PREFIXES.items():
        value = distance(statistics(features[name], network.layer), reference)
        metrics |= _prefixed(prefix, {network.distance: value} | network.scores(features[name]))
    return metrics


def _memorisation(context: StageContext, sets: ImageSets, files: FeatureFiles) -> dict[str, float]:
    """Compare samples, and as many test images, with training images. Draw the closest samples."""
    samples, test = (read_features(files[name])[POOLED] for name in (SAMPLES, TEST))
    real = test[balanced_subset(sets[TEST].shards.labels, len(samples))]
    parts = (load_file(file)[POOLED] for file in files[TRAIN])
    count = min(NEIGHBOURS, len(sets[TRAIN]))
    distances, indices = nearest(torch.cat([samples, real]), parts, count, context.device)
    of_samples, of_real = distances[: len(samples), 0], distances[len(samples) :, 0]
    closest = of_samples.argsort(stable=True)[:PICTURED].tolist()
    rows = [[sets[SAMPLES][sample], *(sets[TRAIN][int(each)] for each in indices[sample])] for sample in closest]
    images = torch.stack([image for row in rows for image in row]).numpy()
    picture = image_grid(images, 1 + count, [f"{of_samples[sample]:.1f}" for sample in closest])
    picture.save(context.work / "nearest.png")
    found = memorisation(of_samples, of_real)
    return {f"{name}_{extractor_name(context.config.evaluate)}": value for name, value in found.items()}


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
