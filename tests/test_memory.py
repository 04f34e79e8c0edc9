"""Stages that read every training image hold no more of them at a time when there are ten times as many."""

from pathlib import Path

import pytest

from benchmarks.memory import measure

FEW, MANY = 1500, 15_000
PER_IMAGE = 1000  # bytes: labels, names and places in memory; the pixels of an image alone have 3,072
SLACK = 16 * 2**20  # bytes; a process differs from the next by up to 14 MiB


@pytest.mark.slow
def test_ten_times_the_images_need_no_more_memory(tmp_path: Path) -> None:
    peaks = {}
    for images in (FEW, MANY):
        (tmp_path / str(images)).mkdir()
        peaks[images] = measure(tmp_path / str(images), images)
    growth = {stage: peaks[MANY][stage] - few for stage, few in peaks[FEW].items()}
    assert {stage: more for stage, more in growth.items() if more > SLACK + PER_IMAGE * (MANY - FEW)} == {}
