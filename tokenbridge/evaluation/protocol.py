"""The protocol of a report: what must be equal before two figures may be compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    size = next(iter(references.values())).image_size
    classes = np.bincount(labels, minlength=len(next(iter(references.values())).label_names))
    return {
        "images": len(labels),
        "fewest_of_a_class": int(classes.min()),
        "most_of_a_class": int(classes.max()),
        "crop": f"shorter side scaled to {size} pixels, centre square, as ADM",
        **facts,
        "references": {name: {"images": len(each), "digest": each.digest} for name, each in references.items()},
        "extractors": {network.distance: network.protocol for network in networks},
    }
