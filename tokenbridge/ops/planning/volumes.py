"""Bytes on disk of a model's training data and of its checkpoints."""

from dataclasses import dataclass

import numpy as np

from tokenbridge.config import MOMENTS, Config, require
from tokenbridge.ops.planning.sizes import FULL, grid_side
from tokenbridge.tokenizer.tokens import bits_per_index, packed_bytes

MOMENT = np.dtype(np.float16).itemsize


@dataclass(frozen=True)
class Volumes:
    """Bytes on disk, except for ``images``, which is a count."""

    images: int
    of_image: int  # bytes read for one image of a step
    moments: int
    tokens: int  # 0 if they are not stored
    checkpoint: int  # weights, averaged weights, optimizer
    model: int  # the averaged weights alone

    @classmethod
    def of(cls, config: Config, parameters: int, optimizer: int) -> "Volumes":
        images, flips = train_images(config), 2 if config.encode.flip else 1
        positions = grid_side(config) ** 2
        moments = 2 * config.dimensions * positions * MOMENT
        slots, classes = config.quantizer.slots(config.dimensions), config.quantizer.classes
        tokens = (
            0 if classes is None else packed_bytes(positions * slots, bits_per_index(classes, config.tokenize.packing))
        )
        stored = images * flips * config.tokenize.samples * tokens if config.tokenize.outs else 0
        return cls(
            images=images,
            of_image=moments if config.train_on == MOMENTS else tokens,
            moments=images * flips * moments,
            tokens=stored,
            checkpoint=2 * FULL * parameters + optimizer,
            model=FULL * parameters,
        )


def train_images(config: Config) -> int:
    """Return the number of images that a model is trained on.

    Raises:
        ConfigError: if neither plan.train_images nor data.max_train gives a number for the data set.
    """
    known, name = config.plan.train_images, config.data.name
    require(
        name in known or config.data.max_train is not None,
        f"the number of training images of {name} is not known before they are fetched: "
        f"say +plan.train_images.{name}=...",
    )
    limits = (known.get(name), config.data.max_train, config.encode.images)
    return min(limit for limit in limits if limit is not None)
