"""One set of photographs in every layout, with broken files among them: the same images, names and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sources.conftest import data_config
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
from tokenbridge.base.files import sha256_tree
from tokenbridge.config import DataConfig
from tokenbridge.images import DataError
from tokenbridge.images.shards import ImageShards
from tokenbridge.sources import fetch
from tokenbridge.sources.fetch import fetch_images

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def photos() -> Photographs:
    return photographs(6, 2)


def folder(photos: Photographs, root: Path) -> Settings:
    write_folder(photos, root)
    return {"source": "imagefolder", "root": str(root), "class_names": "imagenet"}


def tars(photos: Photographs, root: Path) -> Settings:
    md5 = write_tars(photos, root)
    return {"source": "imagenet_tars", "root": str(root), "class_names": "imagenet", "md5": md5}


def webdataset(photos: Photographs, root: Path) -> Settings:
    write_webdataset(photos, root)
    roots = {"root": f"{root}/train-*.tar", "test_root": f"{root}/test-*.tar"}
    return {"source": "webdataset", "label_names": NAMES, **roots}


def parquet(photos: Photographs, root: Path) -> Settings:
    write_parquet(photos, root)
    return {"source": "huggingface", "root": str(root)}


@pytest.fixture(scope="module", params=[folder, tars, webdataset, parquet])
def layout(request: pytest.FixtureRequest, photos: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of each layout in turn."""
    write: Callable[[Photographs, Path], Settings] = request.param
    return write(photos, tmp_path_factory.mktemp("layout") / "source")


def config_of(layout: Settings, **changes: Any) -> DataConfig:
    return data_config(**{"image_size": 32, "num_classes": len(WNIDS), "max_broken": 0.05} | layout | changes)


def labelled(folder: Path, *splits: str) -> dict[bytes, int]:
    """The files of each image of some splits, and their labels."""
    shards = [ImageShards(folder, split) for split in splits]
    return {content: label for each in shards for content, _, label in each.examples(np.arange(len(each)))}


def test_every_layout_gives_the_same_files_and_leaves_out_the_same_broken_ones(
    layout: Settings, photos: Photographs, tmp_path: Path
) -> None:
    manifest = fetch_images(config_of(layout), tmp_path / "images")
    assert manifest["label_names"] == NAMES
    assert list(manifest["splits"]) == ["train", "validation", "test"]
    assert sum(entry["count"] for entry in manifest["splits"].values()) == 72 + 24
    assert sum(len(manifest["left_out"][split]) for split in ("train", "validation")) == 3
    assert manifest["left_out"]["test"] == []
    whole = [(wnid, photos.train[wnid][name]) for wnid in WNIDS for name in photos.train[wnid].keys() - photos.broken]
    train = labelled(tmp_path / "images", "train", "validation")
    assert train == {content: WNIDS.index(wnid) for wnid, content in whole}
    test = labelled(tmp_path / "images", "test")
    assert test == {content: WNIDS.index(wnid) for wnid, content in photos.validation}
    for labels in (list(train.values()), list(test.values())):  # classes are mixed
        assert labels != sorted(labels)


def test_more_broken_images_than_allowed_stop_the_fetch_of_every_layout(layout: Settings, tmp_path: Path) -> None:
    too_many = r"split (train|validation) has more than 2 broken images, which data\.max_broken \(0\.03 of all\) allows"
    for share, message in ((0.0, r"is corrupt or truncated|is not an image"), (0.03, too_many)):
        with pytest.raises(DataError, match=message):
            fetch_images(config_of(layout, max_broken=share), tmp_path / "images")
        assert not (tmp_path / "images/manifest.json").exists()


def test_broken_images_are_named_as_they_are_found(
    photos: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = fetch_images(config_of(folder(photos, tmp_path / "source")), tmp_path / "images")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    left_out = manifest["left_out"]["train"] + manifest["left_out"]["validation"]
    assert len(said) == 3
    for name in photos.broken:
        assert any(f"{name} is " in line for line in said)
        assert any(path.endswith(name) for path in left_out)


def test_the_last_image_of_a_class_cannot_be_left_out(photos: Photographs, tmp_path: Path) -> None:
    lonely = photos.train | {WNIDS[0]: {"broken.JPEG": b"", "other.JPEG": b""}}
    layout = folder(Photographs(lonely, photos.validation, []), tmp_path / "source")
    with pytest.raises(DataError, match=r"(broken|other)\.JPEG was the last image of its class in split train"):
        fetch_images(config_of(layout), tmp_path / "images")


def test_an_interrupted_fetch_goes_on_after_its_last_whole_shard(
    layout: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(layout, shard_size=20)
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
    with pytest.raises(KeyboardInterrupt):
        fetch_images(config, tmp_path / "images")
    left = 100
    fetch_images(config, tmp_path / "images")
    assert left == 100 - (7 - 3)  # of four shards of train, one of validation and two of test
    assert sha256_tree(tmp_path / "images") == sha256_tree(tmp_path / "at once")


def test_a_damaged_record_of_an_interrupted_fetch_is_like_none(photos: Photographs, tmp_path: Path) -> None:
    config, images = config_of(folder(photos, tmp_path / "source")), tmp_path / "images"
    digest = fetch_images(config, images)["digest"]
    for content in (b"", b"[1]", b"\xff", b"{"):
        images.with_suffix(".json").write_bytes(content)
        assert fetch_images(config, images)["digest"] == digest


def test_a_fetch_begins_anew_when_the_source_has_changed(photos: Photographs, tmp_path: Path) -> None:
    config, images = config_of(folder(photos, tmp_path / "source")), tmp_path / "images"
    before = fetch_images(config, images)
    changed = tmp_path / "source/train" / WNIDS[3] / f"{WNIDS[3]}_5.JPEG"
    changed.write_bytes(photos.train[WNIDS[3]][f"{WNIDS[3]}_4.JPEG"])
    assert fetch_images(config, images)["digest"] != before["digest"]
