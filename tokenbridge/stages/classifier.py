"""Stage ``classifier``: images -> a small classifier of real images, which measures the accuracy of generated ones."""

import logging
from dataclasses import replace

from tokenbridge.base.checkpoints import Checkpoints
from tokenbridge.base.files import write_csv, write_json
from tokenbridge.classifier.network import class_accuracy, read_small, save_classifier, shrink
from tokenbridge.classifier.training import train_classifier
from tokenbridge.images import TEST, TRAIN, VALIDATION
from tokenbridge.images.decoded import decode_to_disk
from tokenbridge.images.shards import ImageShards
from tokenbridge.stages.context import NUMERIC_PRECISION, StageContext, compute
from tokenbridge.stages.runtime import stage_run

logger = logging.getLogger(__name__)


def main() -> None:
    with stage_run("classifier") as run:
        compute(run, work, alone=True)
        run.publish(run.work / "metrics.json", "reports/classifier.json")
        run.publish(run.work / "loss.csv", "reports/classifier/loss.csv")
        run.publish(run.work / "classifier", "models/classifier")


def work(context: StageContext) -> None:
    """Write ``classifier``, ``metrics.json`` and ``loss.csv``."""
    config = replace(context.config.classifier, precision=context.precision(context.config.classifier.precision))
    folder = context.root / "data/images"
    train = ImageShards(folder, TRAIN)
    launcher = context.config.launcher
    model, history = train_classifier(
        decode_to_disk(train, context.work / "images", context.name, shrink, launcher.log_seconds),
        label_names=train.label_names,
        config=config,
        seed=context.config.seed,
        checkpoints=Checkpoints(context.work / "checkpoints"),
        launcher=launcher,
        tracker=context.tracker,
        device=context.device,
    )
    held_out = {split: ImageShards(folder, split) for split in (VALIDATION, TEST)}
    accuracy = {name: class_accuracy(model, read_small(images), images.labels) for name, images in held_out.items()}
    for name, images in held_out.items():
        logger.info(f"classifier: {accuracy[name]:.2%} of {len(images):,} {name} images are correct")
    save_classifier(model, context.work / "classifier")
    metrics = {f"{name}_accuracy": value for name, value in accuracy.items()} | {"loss": history[-1]["loss"]}
    write_json(context.work / "metrics.json", metrics | {NUMERIC_PRECISION: config.precision})
    write_csv(context.work / "loss.csv", history)
