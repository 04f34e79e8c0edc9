"""The fingerprint of a source: the same as long as nothing changes, wherever it lies."""

import os
import shutil
from pathlib import Path

import pytest

from tests.sources.conftest import Make
from tests.support.services import S3Place
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.sources.state import source_state


def state(config: DataConfig) -> str:
    return source_state(config, StorageConfig())


def test_a_folder_is_the_same_until_a_file_changes(folder_config: Make, image_root: Path) -> None:
    first, image = state(folder_config()), image_root / "Bag" / "1.png"
    states = [first]

    def changed() -> bool:
        states.append(state(folder_config()))
        return states.count(states[-1]) == 1

    assert not changed()
    (image_root / ".DS_Store").write_bytes(b"x")
    assert not changed()
    os.utime(image, ns=(0, 12345))
    assert changed()
    image.write_bytes(image.read_bytes() + b"x")
    assert changed()
    (image_root / "Bag" / "new.png").write_bytes(b"x")
    assert changed()
    (image_root / "Bag" / "new.png").rename(image_root / "Coat" / "new.png")
    assert changed()


def test_where_a_folder_lies_does_not_count(folder_config: Make, image_root: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(image_root, tmp_path / "copy")  # times too
    assert state(folder_config()) == state(folder_config(root=str(copied)))


def test_tars_of_both_splits_count(folder_config: Make, tmp_path: Path) -> None:
    for name in ("train-0.tar", "test-0.tar"):
        (tmp_path / name).write_bytes(b"x")
    config = folder_config(source="webdataset", root=f"{tmp_path}/train-*.tar", test_root=f"{tmp_path}/test-*.tar")
    before = state(config)
    (tmp_path / "other").write_bytes(b"x")
    assert state(config) == before
    (tmp_path / "test-0.tar").write_bytes(b"xy")
    assert state(config) != before


def test_files_with_digests_are_known_by_them(idx_config: Make) -> None:
    assert state(idx_config()) == state(idx_config(mirrors=[]))
    assert state(idx_config()) != state(idx_config(sha256={"x": "y"}))


def test_a_source_that_is_not_named_is_refused(folder_config: Make) -> None:
    with pytest.raises(DataError, match=r"data\.root is not set"):
        state(folder_config(root=None))


@pytest.mark.pipeline
def test_a_prefix_is_the_same_until_an_object_changes(folder_config: Make, image_root: Path, s3_place: S3Place) -> None:
    s3_place.fill(image_root)
    config = folder_config(source="s3", root=s3_place.uri)
    before = source_state(config, s3_place.config)
    s3_place.folder.put("Bag/0.jpg", (image_root / "Bag" / "0.jpg").read_bytes())  # the same again
    assert source_state(config, s3_place.config) == before
    s3_place.folder.put("Bag/0.jpg", (image_root / "Bag" / "2.jpg").read_bytes())
    assert source_state(config, s3_place.config) != before
