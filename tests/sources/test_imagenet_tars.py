"""ImageNet's three archives, small but in the original layout, of real photographs."""

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.sources.conftest import Make, data_config
from tests.support.photographs import NAMES, WNIDS, Photographs, devkit, tar_of, write_tars
from tests.support.services import S3Place
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.fetch import fetch_images
from tokenbridge.sources.imagenet_tars import DEVKIT, TRAIN, VALIDATION, load_imagenet_tars


@pytest.fixture
def archives(photos: Photographs, tmp_path: Path) -> dict[str, str]:
    """In tmp_path/archives; their MD5."""
    return write_tars(photos, tmp_path / "archives")


@pytest.fixture
def config(archives: dict[str, str], tmp_path: Path) -> Make:
    settings = {"source": "imagenet_tars", "num_classes": len(WNIDS), "class_names": "imagenet", "md5": archives}
    return partial(data_config, root=str(tmp_path / "archives"), **settings)


def load(config: DataConfig, proven: bool = False) -> tuple[list[str], dict[str, Split]]:
    return load_imagenet_tars(config, StorageConfig(), 5.0, proven)


def test_paths_name_class_and_file(config: Make, photos: Photographs) -> None:
    names, splits = load(config())
    assert names == NAMES
    paths = {path for _, path, _ in splits["train"].examples()}
    assert paths == {f"train/{wnid}/{name}" for wnid, files in photos.train.items() for name in files}


def test_another_digest_is_refused_before_anything_is_read(config: Make, archives: dict[str, str]) -> None:
    wrong = config(md5=archives | {VALIDATION: "0" * 32})
    with pytest.raises(DataError, match=rf"{VALIDATION} has the MD5 {archives[VALIDATION]}, not 0{{32}}: get it again"):
        load(wrong)
    assert len(load(wrong, proven=True)[0]) == len(WNIDS)


@pytest.mark.parametrize("name", [TRAIN, VALIDATION, DEVKIT])
def test_a_missing_archive_is_named(config: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / "archives" / name).unlink()
    with pytest.raises(DataError, match=rf"lacks {name}: get it from image-net\.org"):
        load(config())


def without_a_class(photos: Photographs) -> Photographs:
    return Photographs({wnid: photos.train[wnid] for wnid in WNIDS[1:]}, photos.validation, [])


def with_another_class(photos: Photographs) -> Photographs:
    return Photographs(photos.train | {"n00000000": photos.train[WNIDS[0]]}, photos.validation, [])


@pytest.mark.parametrize("harm", [without_a_class, with_another_class])
def test_classes_that_differ_are_refused(
    config: Make, photos: Photographs, tmp_path: Path, harm: Callable[[Photographs], Photographs]
) -> None:
    md5 = write_tars(harm(photos), tmp_path / "other")
    with pytest.raises(DataError, match=r"has 1[13] classes, .*gz 12, and data\.num_classes is 12"):
        load(config(root=str(tmp_path / "other"), md5=md5))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN, tar_of({"n02123045.txt": b"x"}), r"n02123045\.txt is not a \.tar"),
        (TRAIN, tar_of({"n02123045.tar": b"x"}), r"n02123045\.tar is not a tar"),
        (TRAIN, tar_of({"n02123045.tar": tar_of({"../a.JPEG": b"x"})}), r"a\.JPEG is a name outside of the archive"),
        (TRAIN, tar_of({"n02123045.tar": tar_of({})}), r"n02123045\.tar has no images"),
        (TRAIN, tar_of({"n02123045.tar": tar_of({"a.JPEG": b"x", "b.bmp": b"x"})}), r"b\.bmp is not an image file"),
        (VALIDATION, tar_of({"ILSVRC2012_val_00000001.JPEG": b"x"}), r"has 1 images, but .* 24 lines"),
        (VALIDATION, tar_of({f"{n}.JPEG": b"x" for n in range(24)}), r"is not an ILSVRC2012_val_<number>\.JPEG"),
        (DEVKIT, b"no gzip", r"is not a \.tar\.gz, or is cut short"),
    ],
)
def test_an_archive_that_is_not_imagenets_is_named(
    config: Make, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / "archives" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(config(md5={}))


def test_a_devkit_without_its_tables_is_named(config: Make, photos: Photographs, tmp_path: Path) -> None:
    path = tmp_path / "archives" / DEVKIT
    path.write_bytes(gzip.compress(tar_of({"data/readme.txt": b""})))
    with pytest.raises(DataError, match=r"lacks meta\.mat, ILSVRC2012_validation_ground_truth\.txt"):
        load(config(md5={}))
    path.write_bytes(gzip.compress(devkit(photos).replace(b"MATLAB", b"NOTHING")))
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz"):
        load(config(md5={}))


@pytest.mark.pipeline
def test_archives_on_s3_give_the_same_shards(config: Make, s3_place: S3Place, tmp_path: Path) -> None:
    s3_place.fill(tmp_path / "archives")
    local = fetch_images(config(), tmp_path / "local")
    distant = fetch_images(config(root=s3_place.uri), tmp_path / "distant", storage=s3_place.config)
    assert distant["digest"] == local["digest"]
    assert np.sum([entry["count"] for entry in distant["splits"].values()]) == 8 * len(WNIDS)
