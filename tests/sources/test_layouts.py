"""One set of photographs in every layout, with broken files among them: the same images, names and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.photographs import (
    NAMES,
    WNIDS,
    Photographs,
    photographs,
    write_folder,
    write_parquet,
    write_tars,
    write_webdataset,
)
from tests.support.services import S3Place
from tokenbridge.base.files import sha256_tree
from tokenbridge.config import DataConfig
from tokenbridge.images import DataError
from tokenbridge.images.shards import ImageShards, shard_spans
from tokenbridge.sources import fetch
from tokenbridge.sources.fetch import fetch_images

TRAIN, TEST = 6, 2  # images of each class
SIZE = 32


@pytest.fixture(scope="module")
def photos() -> Photographs:
    return photographs(TRAIN, TEST)


Layout = Callable[[Photographs, Path], dict[str, Any]]


def folder(photos: Photographs, root: Path) -> dict[str, Any]:
    write_folder(photos, root)
    return {"source": "imagefolder", "root": str(root), "class_names": "imagenet"}


def tars(photos: Photographs, root: Path) -> dict[str, Any]:
    md5 = write_tars(photos, root)
    return {"source": "imagenet_tars", "root": str(root), "class_names": "imagenet", "md5": md5}


def webdataset(photos: Photographs, root: Path) -> dict[str, Any]:
    write_webdataset(photos, root)
    roots = {"root": f"{root}/train-*.tar", "test_root": f"{root}/test-*.tar"}
    return {"source": "webdataset", "label_names": NAMES, **roots}


def parquet(photos: Photographs, root: Path) -> dict[str, Any]:
    write_parquet(photos, root)
    return {"source": "huggingface", "root": str(root)}


LAYOUTS: list[Layout] = [folder, tars, webdataset, parquet]


def config_of(layout: dict[str, Any], **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {"name": "photographs", "licence": "", "citation": "", "image_size": SIZE}
    return DataConfig(**settings | {"num_classes": len(WNIDS), "max_broken": 0.05} | layout | changes)


def pixels(folder: Path, split: str) -> dict[bytes, int]:
    """Each image of a split as the models see it, and its label."""
    shards = ImageShards(folder, split)
    images, labels = shards.read(0, len(shards))
    return {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


@pytest.fixture(scope="module")
def expected(photos: Photographs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[bytes, int]]:
    root = tmp_path_factory.mktemp("expected")
    fetch_images(config_of(folder(photos, root / "source")), root / "images")
    return whole_splits(root / "images")


def whole_splits(folder: Path) -> dict[str, dict[bytes, int]]:
    """Training images with those cut for validation, which depend on the order of the layout; and test images."""
    return {"train": pixels(folder, "train") | pixels(folder, "validation"), "test": pixels(folder, "test")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images_and_leaves_out_the_same_broken_ones(
    layout: Layout, photos: Photographs, expected: dict[str, dict[bytes, int]], tmp_path: Path
) -> None:
    manifest = fetch_images(config_of(layout(photos, tmp_path / "source")), tmp_path / "images")
    assert manifest["label_names"] == NAMES
    counts = {split: entry["count"] for split, entry in manifest["splits"].items()}
    assert list(counts) == ["train", "validation", "test"]
    assert (counts["train"] + counts["validation"], counts["test"]) == (72, 24)
    assert sum(len(manifest["left_out"][split]) for split in ("train", "validation")) == 3
    assert manifest["left_out"]["test"] == []
    assert {split: len(images) for split, images in expected.items()} == {"train": 72, "test": 24}
    assert whole_splits(tmp_path / "images") == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.0, r"is corrupt or truncated|is not an image"),
        (
            0.03,
            r"split (train|validation) has more than 2 broken images, which data\.max_broken \(0\.03 of all\) allows",
        ),
    ],
)
def test_more_broken_images_than_allowed_stop_the_fetch_of_every_layout(
    layout: Layout, photos: Photographs, share: float, message: str, tmp_path: Path
) -> None:
    config = config_of(layout(photos, tmp_path / "source"), max_broken=share)
    with pytest.raises(DataError, match=message):
        fetch_images(config, tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_broken_images_are_named_as_they_are_found(
    photos: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = fetch_images(config_of(folder(photos, tmp_path / "source")), tmp_path / "images")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(said) == 3
    for name in photos.broken:
        assert any(f"{name} is " in line for line in said)
        left_out = manifest["left_out"]["train"] + manifest["left_out"]["validation"]
        assert any(path.endswith(name) for path in left_out)


def test_the_last_image_of_a_class_cannot_be_left_out(photos: Photographs, tmp_path: Path) -> None:
    lonely = {WNIDS[0]: {"broken.JPEG": b"", "other.JPEG": b""}}
    with pytest.raises(DataError, match=r"(broken|other)\.JPEG was the last image of its class in split train"):
        fetch_images(
            config_of(folder(Photographs(photos.train | lonely, photos.validation, []), tmp_path / "source")),
            tmp_path / "images",
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupted_fetch_goes_on_after_its_last_whole_shard(
    layout: Layout, photos: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(layout(photos, tmp_path / "source"), shard_size=20)
    fetch_images(config, tmp_path / "at once")
    whole = fetch.write_shard
    left = 3

    def killed(*arguments: Any) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(fetch, "write_shard", killed)
    images = tmp_path / "images"
    with pytest.raises(KeyboardInterrupt):
        fetch_images(config, images, resume=True)
    left = 100
    fetch_images(config, images, resume=True)
    assert left == 100 - (7 - 3)  # of four shards of train, one of validation and two of test
    assert sha256_tree(images) == sha256_tree(tmp_path / "at once")


def test_a_fetch_begins_anew_when_the_source_has_changed(photos: Photographs, tmp_path: Path) -> None:
    config, images = config_of(folder(photos, tmp_path / "source")), tmp_path / "images"
    before = fetch_images(config, images, resume=True)
    changed = tmp_path / "source/train" / WNIDS[3] / f"{WNIDS[3]}_5.JPEG"
    changed.write_bytes(photos.train[WNIDS[3]][f"{WNIDS[3]}_4.JPEG"])
    assert fetch_images(config, images, resume=True)["digest"] != before["digest"]


def test_a_shards_images_are_those_of_its_place() -> None:
    spans = shard_spans("train", 25, 10)
    assert list(spans) == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
    assert np.concatenate(list(spans.values())).tolist() == list(range(25))


@pytest.mark.pipeline
def test_webdataset_on_s3_is_the_same(
    photos: Photographs, expected: dict[str, dict[bytes, int]], s3_place: S3Place, tmp_path: Path
) -> None:
    write_webdataset(photos, tmp_path / "source")
    s3_place.fill(tmp_path / "source")
    roots = {"root": f"{s3_place.uri}/train-*.tar", "test_root": f"{s3_place.uri}/test-*.tar"}
    config = config_of({"source": "webdataset", "label_names": NAMES, **roots})
    fetch_images(config, tmp_path / "images", storage=s3_place.config)
    assert whole_splits(tmp_path / "images") == expected
