"""Small real data sets: IDX files as MNIST has them, folders of JPEG and PNG pictures, and photographs."""

import gzip
import hashlib
import io
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.photographs import Photographs, photographs
from tokenbridge.config import DataConfig, MirrorConfig
from tokenbridge.sources.idx import IDX_FILES

CLASSES = ["Bag", "Coat", "Shirt"]
Make = Callable[..., DataConfig]  # takes the settings to change


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def picture(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    """Smooth colours, so that JPEG keeps them."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sha256_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def data_config(**settings: Any) -> DataConfig:
    """The settings of a small data set, where ``settings`` does not name others."""
    small = {"name": "tiny", "licence": "ours", "citation": "nobody", "image_size": 8, "num_classes": 3}
    return DataConfig(**small | settings)


@pytest.fixture
def pixels() -> dict[str, np.ndarray]:
    """Grey images [N, 6, 6] of each split; the label of image i is i % 3."""
    rng = np.random.default_rng(0)
    return {split: rng.integers(0, 256, (count, 6, 6), dtype=np.uint8) for split, count in (("train", 25), ("test", 7))}


@pytest.fixture
def idx_config(pixels: dict[str, np.ndarray], tmp_path: Path) -> Make:
    """The four files in a folder, half of them plain and half .gz."""
    folder, files = tmp_path / "idx", {}
    folder.mkdir()
    for split, (images, labels) in IDX_FILES.items():
        files |= {images: idx_bytes(pixels[split]), labels: idx_bytes(np.arange(len(pixels[split])) % 3)}
        (folder / f"{images}.gz").write_bytes(gzip.compress(files[images]))
        (folder / labels).write_bytes(files[labels])
    mirrors, sha256 = [MirrorConfig("folder", str(folder))], sha256_of(files)
    return partial(data_config, source="idx", label_names=CLASSES, mirrors=mirrors, sha256=sha256, shard_size=10)


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """root/<class>/*: 5 images in each of 3 classes, JPEG and PNG."""
    root = tmp_path / "pictures"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(5):
            suffix = "png" if index % 2 else "jpg"
            picture(10 * label + index, 20, 14).save(root / name / f"{index}.{suffix}")
    return root


@pytest.fixture
def folder_config(image_root: Path) -> Make:
    return partial(data_config, source="imagefolder", root=str(image_root), test_fraction=0.2)


@pytest.fixture(scope="session")
def photos() -> Photographs:
    """Whole photographs, of each class 6 for training and 2 for testing."""
    return photographs(6, 2, broken=False)
