"""Small real data sets: IDX files as MNIST has them, and folders of JPEG and PNG pictures."""

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenbridge.config import DataConfig, MirrorConfig
from tokenbridge.sources.idx import IDX_FILES

CLASSES = ["Bag", "Coat", "Shirt"]


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def picture(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    """Smooth colours, so that JPEG keeps them."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture
def pixels() -> dict[str, np.ndarray]:
    """Grey images [N, 6, 6] of each split; the label of image i is i % 3."""
    rng = np.random.default_rng(0)
    return {split: rng.integers(0, 256, (count, 6, 6), dtype=np.uint8) for split, count in (("train", 25), ("test", 7))}


@pytest.fixture
def idx_files(pixels: dict[str, np.ndarray]) -> dict[str, bytes]:
    files = {}
    for split, (images, labels) in IDX_FILES.items():
        files[images] = idx_bytes(pixels[split])
        files[labels] = idx_bytes(np.arange(len(pixels[split])) % 3)
    return files


@pytest.fixture
def idx_folder(tmp_path: Path, idx_files: dict[str, bytes]) -> Path:
    """The four files, half of them plain and half .gz."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, content in idx_files.items():
        if "labels" in name:
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


def sha256_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


@pytest.fixture
def idx_config(idx_files: dict[str, bytes], idx_folder: Path) -> Callable[..., DataConfig]:
    def make(**changes: Any) -> DataConfig:
        settings: dict[str, Any] = {
            "name": "tiny_idx",
            "source": "idx",
            "licence": "MIT",
            "citation": "nobody",
            "image_size": 8,
            "num_classes": 3,
            "label_names": CLASSES,
            "mirrors": [MirrorConfig("folder", str(idx_folder))],
            "sha256": sha256_of(idx_files),
            "shard_size": 10,
        }
        return DataConfig(**settings | changes)

    return make


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
def folder_config(image_root: Path) -> Callable[..., DataConfig]:
    def make(**changes: Any) -> DataConfig:
        settings: dict[str, Any] = {
            "name": "tiny_folder",
            "source": "imagefolder",
            "licence": "ours",
            "citation": "",
            "image_size": 8,
            "num_classes": 3,
            "root": str(image_root),
            "test_fraction": 0.2,
        }
        return DataConfig(**settings | changes)

    return make
