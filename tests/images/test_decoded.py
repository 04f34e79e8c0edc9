"""Decoded images on disk: what a killed run wrote stays, and the rest is added."""

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.conftest import LABEL_NAMES, draw_shapes
from tests.evaluation.shards import save_shards
from tokenbridge.base import arrays
from tokenbridge.images.decoded import decode_to_disk
from tokenbridge.images.shards import ImageShards


def test_a_killed_run_continues_with_the_files_that_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "SHARD_ROWS", 4)
    images, labels = draw_shapes(10)
    save_shards(tmp_path / "images", {"train": (images, labels)}, LABEL_NAMES)
    shards, seen = ImageShards(tmp_path / "images", "train"), []

    def darken(pixels: np.ndarray) -> np.ndarray:
        seen.append(len(pixels))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return pixels // 2

    with pytest.raises(KeyboardInterrupt):
        decode_to_disk(shards, tmp_path / "decoded", "vae", darken, log_seconds=60)
    written = decode_to_disk(shards, tmp_path / "decoded", "vae", darken, log_seconds=60)
    assert seen == [4, 4, 4, 2]
    assert np.array_equal(written.read(np.array([9, 0, 5])), images[[9, 0, 5]] // 2)
    assert written.labels.tolist() == labels.tolist()
