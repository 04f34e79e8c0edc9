"""The benchmark of loading runs, and compares readers of the same content; how fast they are is not asserted."""

from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.data_loading import FLIPS, make_reader, table, write_all

pytestmark = pytest.mark.pipeline

IMAGES = 300
KINDS, CACHES = ("moments", "tokens"), ("warm", "cold")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    write_all(folder, IMAGES)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_both_readers_give_the_same_of_every_image(folder: Path, kind: str) -> None:
    images = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    for flip in range(FLIPS):
        flips = torch.full_like(images, flip)
        npz, shards = (make_reader(folder, name)(images, flips) for name in (f"{kind}_npz", kind))
        assert npz.dtype == shards.dtype
        assert torch.equal(npz, shards)


def test_there_is_a_row_for_each_kind_warm_and_cold(folder: Path) -> None:
    _, _, *lines = table(folder, IMAGES, processes=[1], repeats=1).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(kind, processes, cache) for kind, processes, cache, *_ in rows] == [
        (kind, "1", cache) for kind, cache in product(KINDS, CACHES)
    ]
