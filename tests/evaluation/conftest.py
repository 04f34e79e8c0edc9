"""Small drawn images of three classes (disc, square, stripes), with noise: real enough to be told apart."""

import numpy as np
from numpy.typing import NDArray

SIDE = 32
LABEL_NAMES = ["disc", "square", "stripes"]
Shapes = tuple[NDArray[np.uint8], NDArray[np.int64]]


def draw_shapes(count: int, seed: int = 0) -> Shapes:
    """Images uint8 [count, 3, 32, 32] with the classes in turn, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    images = rng.normal(40, 10, (count, 3, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        cx, cy = rng.integers(12, 20, 2)
        size = rng.integers(6, 10)
        disc, square = (x - cx) ** 2 + (y - cy) ** 2 < size**2, (abs(x - cx) < size) & (abs(y - cy) < size)
        mask = (disc, square, square & (x % 4 < 2))[label]
        image[:, mask] += rng.integers(100, 180)
    return images.clip(0, 255).astype(np.uint8), labels
