"""The protocol of a report: what must be equal before two figures may be compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenbridge.base.files import sha256_file
from tokenbridge.config import Config
from tokenbridge.evaluation.networks import Network
from tokenbridge.images.shards import ImageShards


def protocol(
    labels: NDArray[np.int64], references: Mapping[str, ImageShards], networks: Sequence[Network], **facts: Any
) -> dict[str, Any]:
    """Return the protocol as a nested dict, which reports hold and MLflow shows as parameters.

    Args:
        labels: of the images that are measured; their balance is part of the protocol.
        references: name -> set of images that they are compared with.
        facts: what else decides the figures, such as the seed.
    """
    some = next(iter(references.values()))
    size = some.image_size
    return {
        **balance(labels, len(some.label_names)),
        "crop": f"shorter side scaled to {size} pixels, centre square, as ADM",
        **facts,
        "references": {name: {"images": len(each), "digest": each.digest} for name, each in references.items()},
        "extractors": {network.distance: network.protocol for network in networks},
    }


def balance(labels: NDArray[np.int64], num_classes: int) -> dict[str, int]:
    """Return the number of images, and how many the smallest and the largest of all classes have."""
    counts = np.bincount(labels, minlength=num_classes)
    return {"images": len(labels), "fewest_of_a_class": int(counts.min()), "most_of_a_class": int(counts.max())}


def sample_facts(config: Config, drawn: Mapping[str, Any], classifier: Path) -> dict[str, Any]:
    """Return what decides the figures of samples.

    Args:
        drawn: the manifest of the samples.
        classifier: the file with the weights of the classifier, which gives the class accuracy.
    """
    return {
        "seed": config.seed,
        "precision": drawn["precision"],
        "batch_size": drawn["batch_size"],
        "kid_subsets": config.evaluate.kid_subsets,
        "kid_subset_size": config.evaluate.kid_subset_size,
        "classifier": sha256_file(classifier),
    }
