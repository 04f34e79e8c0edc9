"""The whole fetch: shards of every source, and nothing half written whatever goes wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.sources.conftest import CLASSES, idx_bytes, sha256_of
from tests.support.checkout import CHECKOUT
from tokenbridge.base.files import sha256_tree
from tokenbridge.config import ConfigError, DataConfig, MirrorConfig
from tokenbridge.config.params import compose_config, validate
from tokenbridge.images import DataError
from tokenbridge.images.shards import ImageShards
from tokenbridge.images.splits import cut_validation
from tokenbridge.sources.fetch import fetch_images

CONF = CHECKOUT / "conf"
Make = Callable[..., DataConfig]


def test_idx_becomes_padded_rgb(idx_config: Make, pixels: dict[str, np.ndarray], tmp_path: Path) -> None:
    manifest = fetch_images(idx_config(), tmp_path / "images")
    counts = {split: entry["count"] for split, entry in manifest["splits"].items()}
    assert counts == {"train": 22, "validation": 3, "test": 7}
    assert (manifest["name"], manifest["licence"], manifest["citation"]) == ("tiny_idx", "MIT", "nobody")
    cut = cut_validation(np.arange(25) % 3, 2000, 0)
    wanted = {"train": ~cut, "validation": cut, "test": np.full(7, True)}
    for split, chosen in wanted.items():
        grey = pixels["test" if split == "test" else "train"][chosen]
        images, labels = ImageShards(tmp_path / "images", split).read(0, len(grey))
        assert images.shape == (len(grey), 3, 8, 8)
        np.testing.assert_array_equal(images[:, :, 1:-1, 1:-1], np.repeat(grey[:, None], 3, axis=1))
        assert images[:, :, 0].max() == 0
        np.testing.assert_array_equal(labels, np.flatnonzero(chosen) % 3)


def test_imagefolder_is_cropped_when_read(folder_config: Make, tmp_path: Path) -> None:
    manifest = fetch_images(folder_config(), tmp_path / "images")
    assert manifest["label_names"] == CLASSES
    train = ImageShards(tmp_path / "images", "train")
    assert train.read(0, len(train))[0].shape == (9, 3, 8, 8)


@pytest.mark.parametrize("make", ["idx_config", "folder_config"])
def test_fetching_again_gives_the_same_bytes(make: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(make)()
    trees = []
    for name in ("a", "b"):
        fetch_images(config, tmp_path / name)
        trees.append(sha256_tree(tmp_path / name))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("make", ["idx_config", "folder_config"])
def test_limits_keep_balanced_classes(make: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fetch_images(request.getfixturevalue(make)(max_train=6, max_test=3), tmp_path / "images")
    for split, expected in (("train", [1, 1, 1]), ("validation", [1, 1, 1]), ("test", [1, 1, 1])):
        shards = ImageShards(tmp_path / "images", split)
        assert np.bincount(shards.labels).tolist() == expected
        np.testing.assert_array_equal(shards.read(0, len(shards))[1], shards.labels)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_source_of_the_catalogue_is_valid(name: str) -> None:
    assert name.startswith(validate(compose_config([f"data={name}"], CONF)).data.name)  # imagenet_hub is imagenet


def break_checksum(idx_folder: Path) -> None:
    (idx_folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(7)))


def lose_folder(idx_folder: Path) -> None:
    idx_folder.rename(idx_folder.with_name("gone"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [(break_checksum, "t10k-labels-idx1-ubyte has the wrong checksum"), (lose_folder, "idx is not a folder")],
)
def test_after_a_failed_download_the_previous_images_stay(
    idx_config: Make, idx_folder: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    assert_previous_stays(idx_config(), tmp_path, lambda: harm(idx_folder), message)


def test_after_a_bad_idx_file_the_previous_images_stay(
    idx_config: Make, idx_files: dict[str, bytes], idx_folder: Path, tmp_path: Path
) -> None:
    name = "train-labels-idx1-ubyte"
    broken = idx_files | {name: b"no header"}
    (idx_folder / name).write_bytes(broken[name])
    fetch_images(idx_config(sha256=sha256_of(idx_files), mirrors=mirror_of(idx_files, tmp_path)), tmp_path / "images")
    before = sha256_tree(tmp_path / "images")
    with pytest.raises(DataError, match=f"{name} has no readable IDX header"):
        fetch_images(idx_config(sha256=sha256_of(broken)), tmp_path / "images")
    assert sha256_tree(tmp_path / "images") == before


def mirror_of(files: dict[str, bytes], tmp_path: Path) -> list[MirrorConfig]:
    (tmp_path / "mirror").mkdir()
    for name, content in files.items():
        (tmp_path / "mirror" / name).write_bytes(content)
    return [MirrorConfig("folder", str(tmp_path / "mirror"))]


def test_after_a_truncated_image_the_previous_images_stay(
    folder_config: Make, image_root: Path, tmp_path: Path
) -> None:
    def truncate() -> None:
        victim = image_root / "Shirt" / "1.png"
        victim.write_bytes(victim.read_bytes()[:-30])

    assert_previous_stays(folder_config(), tmp_path, truncate, r"Shirt/1\.png is corrupt or truncated")


def test_after_an_unreadable_image_the_previous_images_stay(
    folder_config: Make, image_root: Path, tmp_path: Path
) -> None:
    def replace_by_dangling_link() -> None:
        (image_root / "Shirt" / "1.png").unlink()
        (image_root / "Shirt" / "1.png").symlink_to("nowhere.png")

    assert_previous_stays(folder_config(), tmp_path, replace_by_dangling_link, r"Shirt/1\.png cannot be read")


def assert_previous_stays(config: DataConfig, tmp_path: Path, harm: Callable[[], None], message: str) -> None:
    """A good fetch, then harm to the source, then a fetch that fails and leaves the output folder as it was."""
    out = tmp_path / "data"
    fetch_images(config, out / "images")
    before = sha256_tree(out)
    harm()
    with pytest.raises(DataError, match=message):
        fetch_images(config, out / "images")
    assert sha256_tree(out) == before
    assert [path.name for path in out.iterdir()] == ["images"]


def test_a_first_fetch_that_fails_leaves_nothing(folder_config: Make, image_root: Path, tmp_path: Path) -> None:
    (image_root / "Bag" / "0.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"Bag/0\.jpg is not an image"):
        fetch_images(folder_config(), tmp_path / "data" / "images")
    assert list((tmp_path / "data").iterdir()) == []


def test_every_idx_file_needs_a_digest(idx_config: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.sha256 lacks train-images-idx3-ubyte, .*give the SHA-256"):
        fetch_images(idx_config(sha256={}), tmp_path / "images")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_train": 2}, r"max_train is 2: must be at least data\.num_classes \(3\)"),
        ({"label_names": ["Bag", "Bag", "Coat"]}, "label_names repeats a name"),
        ({"num_classes": 4}, r"label_names has 3 names: must be as many as data\.num_classes \(4\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(idx_config: Make, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        idx_config(**changes)


def test_an_http_mirror_needs_an_http_address() -> None:
    with pytest.raises(ConfigError, match="location is 'ftp://x'"):
        MirrorConfig("http", "ftp://x")
