"""Stages that read every training image hold no more of them at a time when there are ten times as many."""

from pathlib import Path

import pytest

from benchmarks.memory import measure

pytestmark = pytest.mark.pipeline

FEW, MANY = 400, 4000  # images
SLACK = 8 * 2**20  # bytes; a process differs from the next by up to 3 MiB
PER_IMAGE = {  # bytes
    "fetch": 1000,  # names and places
    "encode": 100,  # the label
    "fit_quantizer": 100,
    "train@tiny": 100,  # the label, and the place in an epoch's order
}
ALLOWED = {stage: SLACK + size * (MANY - FEW) for stage, size in PER_IMAGE.items()}
READ = {"fetch": "source", "encode": "data/images", "fit_quantizer": "data/moments", "train@tiny": "data/moments"}

Measured = dict[int, tuple[Path, dict[str, int]]]
"""By the number of images: the folder in which the stages ran, and the peak of each in bytes."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folders = {images: tmp_path_factory.mktemp(f"images-{images}") for images in (FEW, MANY)}
    return {images: (folder, measure(folder, images)) for images, folder in folders.items()}


@pytest.mark.parametrize("stage", PER_IMAGE)
def test_ten_times_the_images_need_no_more_memory(measured: Measured, stage: str) -> None:
    few, many = (measured[images] for images in (FEW, MANY))
    assert many[1][stage] - few[1][stage] <= ALLOWED[stage]
    # and it would be noticed if they were held, even as they are stored
    held = stored_bytes(many[0] / READ[stage]) - stored_bytes(few[0] / READ[stage])
    assert held > 1.5 * ALLOWED[stage]


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
