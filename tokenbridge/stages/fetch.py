"""Stage ``fetch``: images of the configured source, checked and written as shards, and a picture of them."""

from typing import Any

import numpy as np
from PIL import Image

from tokenbridge.base.image_grid import image_grid
from tokenbridge.config import Config
from tokenbridge.evaluation.checks import check_counts
from tokenbridge.evaluation.inception import check_inception
from tokenbridge.images.shards import ImageShards, image_counts
from tokenbridge.sources.fetch import fetch_images
from tokenbridge.stages.runtime import stage_run

PICTURED = 10  # images of each class in the picture
PICTURED_CLASSES = 20


def main() -> None:
    with stage_run("fetch") as run:
        data = run.config.data
        seconds = run.config.launcher.log_seconds
        manifest = fetch_images(data, run.work / "images", seconds, run.config.storage)
        run.tracker.dataset(data.name, manifest["digest"], source=data.citation or data.name, context="fetch")
        picture(ImageShards(run.work / "images", "train")).save(run.work / "images.png")
        _check(run.config, manifest)
        run.publish(run.work / "images", "data/images")
        run.publish(run.work / "images.png", "reports/fetch/images.png")


def _check(config: Config, manifest: dict[str, Any]) -> None:
    """Check now what the evaluation at the end of the pipeline needs, so that it does not fail after training."""
    check_inception(config.evaluate)
    check_counts(config.evaluate, config.generate.samples, image_counts(manifest))


def picture(images: ImageShards) -> Image.Image:
    """Return a picture with a row for each class: its name and its first images."""
    names = images.label_names[:PICTURED_CLASSES]
    side = images.image_size
    grid = np.full((len(names), PICTURED, 3, side, side), 255, np.uint8)  # white where a class has fewer
    for label in range(len(names)):
        for column, index in enumerate(np.flatnonzero(images.labels == label)[:PICTURED].tolist()):
            grid[label, column] = images.read(index, index + 1)[0][0]
    return image_grid(grid.reshape(-1, 3, side, side), PICTURED, names)
