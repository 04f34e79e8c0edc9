"""Samples of a model as shards."""

from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from tests.support.patience import PATIENCE
from tokenbridge.base.threads import THREADS
from tokenbridge.images.decoding import encode_png
from tokenbridge.images.shards import ImageShards, read_manifest
from tokenbridge.sampling import samples
from tokenbridge.sampling.samples import grid_indices, sample_chunks, write_samples


def test_samples_are_compressed_by_all_threads_and_come_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread would keep GPUs idle for minutes after 50,000 samples."""
    together = Barrier(THREADS)

    def encode(image: Image.Image) -> bytes:
        together.wait(PATIENCE)
        return encode_png(image)

    monkeypatch.setattr(samples, "encode_png", encode)
    count = 2 * THREADS
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    (chunk,) = sample_chunks(tmp_path / "drawn", count)
    chunk.path.parent.mkdir()
    np.save(chunk.path, images)
    facts = {"precision": "fp32", "batch_size": 100}
    write_samples(tmp_path / "samples", [chunk], ["light", "dark"], 8, 1000, facts)
    assert read_manifest(tmp_path / "samples").items() >= facts.items()
    written = ImageShards(tmp_path / "samples", "samples")
    assert np.array_equal(written.read(0, count)[0], images)
    assert written.labels.tolist() == [0, 1] * THREADS


@pytest.mark.parametrize(
    ("num_classes", "count", "expected"),
    [
        (3, 100, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]),
        (3, 8, [[0, 3], [1, 4], [2, 5]]),  # the third class has two samples
        (3, 2, [[0], [1]]),
        (1000, 2000, [[label, 1000 + label] for label in range(10)]),
    ],
)
def test_a_row_of_the_picture_shows_one_class(num_classes: int, count: int, expected: list[list[int]]) -> None:
    assert grid_indices(num_classes, 4, count).tolist() == expected
