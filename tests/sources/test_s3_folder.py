"""A prefix of images on S3 gives what a local copy gives, and says the same of what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.services import S3Place
from tokenbridge.base.files import sha256_tree
from tokenbridge.config import ConfigError, DataConfig
from tokenbridge.images import DataError
from tokenbridge.infra.storage import StorageError
from tokenbridge.sources import imagefiles
from tokenbridge.sources.fetch import fetch_images

Make = Callable[..., DataConfig]


@pytest.fixture
def distant(folder_config: Make, image_root: Path, s3_place: S3Place) -> DataConfig:
    s3_place.fill(image_root)
    return folder_config(source="s3", root=s3_place.uri)


@pytest.mark.cluster
def test_shards_are_those_of_a_local_copy(
    distant: DataConfig, folder_config: Make, s3_place: S3Place, tmp_path: Path
) -> None:
    fetch_images(folder_config(), tmp_path / "local")
    fetch_images(distant, tmp_path / "distant", storage=s3_place.config)
    assert sha256_tree(tmp_path / "distant") == sha256_tree(tmp_path / "local")


@pytest.mark.cluster
def test_given_splits_are_used(folder_config: Make, image_root: Path, s3_place: S3Place, tmp_path: Path) -> None:
    for split in ("train", "test"):
        s3_place.fill(image_root, below=f"{split}/")
    manifest = fetch_images(folder_config(source="s3", root=s3_place.uri), tmp_path / "i", storage=s3_place.config)
    assert {split: entry["count"] for split, entry in manifest["splits"].items()} == {
        "train": 12,
        "validation": 3,
        "test": 15,
    }


@pytest.mark.cluster
def test_what_is_wrong_is_named_by_its_address(
    distant: DataConfig, s3_place: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(message: str) -> None:
        with pytest.raises((DataError, StorageError), match=message):
            fetch_images(distant, tmp_path / "images", storage=s3_place.config)
        assert not (tmp_path / "images").exists()

    s3_place.folder.put("stray.png", b"x")
    fails(rf"{s3_place.uri}/stray\.png lies outside of a class folder")
    s3_place.folder.delete("stray.png")
    s3_place.folder.put("Bag/0.jpg", b"x" * 5000)
    fails(rf"{s3_place.uri}/Bag/0\.jpg is not an image")
    monkeypatch.setattr(imagefiles, "MAX_FILE_BYTES", 4000)
    fails(rf"{s3_place.uri}/Bag/0\.jpg has 5,000 bytes, but an image may have 0 to 4,000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fails("the secret key does not belong to the access key")


def test_the_root_is_an_address_on_s3(folder_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"root is '/data': with data\.source=s3 it must start with s3://"):
        folder_config(source="s3", root="/data")
    with pytest.raises(DataError, match=r"data\.root is not set: name the prefix"):
        fetch_images(replace(folder_config(), source="s3", root=None), tmp_path / "images")
