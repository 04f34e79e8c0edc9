"""A prefix of images on S3 gives what a local copy gives, and says the same of what is wrong."""

import shutil
from pathlib import Path

import pytest

from tests.sources.conftest import Make
from tests.support.services import S3Place
from tokenbridge.base.files import sha256_tree
from tokenbridge.config.data import ImageLimits
from tokenbridge.images import DataError
from tokenbridge.infra.storage import StorageError
from tokenbridge.sources.fetch import fetch_images


@pytest.mark.cluster
def test_shards_are_those_of_a_local_copy(
    folder_config: Make, image_root: Path, s3_place: S3Place, tmp_path: Path
) -> None:
    """Of a prefix with given splits; tests/stages/test_fetch.py has one without."""
    for split in ("train", "test"):
        shutil.copytree(image_root, tmp_path / "divided" / split)
    s3_place.fill(tmp_path / "divided")
    manifest = fetch_images(folder_config(root=str(tmp_path / "divided")), tmp_path / "local")
    fetch_images(folder_config(source="s3", root=s3_place.uri), tmp_path / "distant", storage=s3_place.config)
    assert sha256_tree(tmp_path / "distant") == sha256_tree(tmp_path / "local")
    counts = {split: entry["count"] for split, entry in manifest["splits"].items()}
    assert counts == {"train": 12, "validation": 3, "test": 15}


@pytest.mark.cluster
def test_what_is_wrong_is_named_by_its_address(
    folder_config: Make, image_root: Path, s3_place: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_place.fill(image_root)

    def fails(message: str, **settings: object) -> None:
        with pytest.raises((DataError, StorageError), match=message):
            fetch_images(
                folder_config(source="s3", root=s3_place.uri, **settings), tmp_path / "images", storage=s3_place.config
            )

    s3_place.folder.put("stray.png", b"x")
    fails(rf"{s3_place.uri}/stray\.png lies outside of a class folder")
    s3_place.folder.delete("stray.png")
    s3_place.folder.put("Bag/0.jpg", b"x" * 5000)
    fails(rf"{s3_place.uri}/Bag/0\.jpg is not an image")
    fails(rf"{s3_place.uri}/Bag/0\.jpg has 5,000 bytes, more than", limits=ImageLimits(megabytes=0.004))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fails("the secret key does not belong to the access key")
