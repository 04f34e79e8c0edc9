"""The whole fetch: shards that hold the chosen images, and settings that cannot work."""

from pathlib import Path

import numpy as np
import pytest

from tests.sources.conftest import CLASSES, Make, data_config
from tests.support.checkout import CHECKOUT
from tokenbridge.base.files import sha256_tree
from tokenbridge.config import ConfigError, MirrorConfig
from tokenbridge.config.params import compose_config, validate
from tokenbridge.images import DataError
from tokenbridge.images.shards import ImageShards
from tokenbridge.images.splits import cut_validation
from tokenbridge.sources.fetch import fetch_images

CONF = CHECKOUT / "conf"


def test_idx_becomes_padded_rgb(idx_config: Make, pixels: dict[str, np.ndarray], tmp_path: Path) -> None:
    manifest = fetch_images(idx_config(), tmp_path / "images")
    counts = {split: entry["count"] for split, entry in manifest["splits"].items()}
    assert counts == {"train": 22, "validation": 3, "test": 7}
    assert (manifest["name"], manifest["licence"], manifest["citation"]) == ("tiny", "ours", "nobody")
    cut = cut_validation(np.arange(25) % 3, 2000, 0)
    wanted = {"train": ~cut, "validation": cut, "test": np.full(7, True)}
    for split, chosen in wanted.items():
        grey = pixels["test" if split == "test" else "train"][chosen]
        images, labels = ImageShards(tmp_path / "images", split).read(0, len(grey))
        assert images.shape == (len(grey), 3, 8, 8)
        np.testing.assert_array_equal(images[:, :, 1:-1, 1:-1], np.repeat(grey[:, None], 3, axis=1))
        assert images[:, :, 0].max() == 0
        np.testing.assert_array_equal(labels, np.flatnonzero(chosen) % 3)


def test_fetching_again_gives_the_same_bytes(idx_config: Make, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fetch_images(idx_config(), tmp_path / name)
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")


def test_limits_keep_balanced_classes(folder_config: Make, tmp_path: Path) -> None:
    fetch_images(folder_config(max_train=6, max_test=3), tmp_path / "images")
    for split in ("train", "validation", "test"):
        shards = ImageShards(tmp_path / "images", split)
        assert np.bincount(shards.labels).tolist() == [1, 1, 1]
        np.testing.assert_array_equal(shards.read(0, len(shards))[1], shards.labels)


def test_every_idx_file_needs_a_digest(idx_config: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.sha256 lacks train-images-idx3-ubyte, .*give the SHA-256"):
        fetch_images(idx_config(sha256={}), tmp_path / "images")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_source_of_the_catalogue_is_valid(name: str) -> None:
    assert name.startswith(validate(compose_config([f"data={name}"], CONF)).data.name)  # imagenet_hub is imagenet


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_train": 2}, r"max_train is 2: must be at least data\.num_classes \(3\)"),
        ({"label_names": ["Bag", "Bag", "Coat"]}, "label_names repeats a name"),
        (
            {"label_names": CLASSES, "num_classes": 4},
            r"label_names has 3 names: must be as many as data\.num_classes \(4\)",
        ),
        ({"source": "s3", "root": "/data"}, r"root is '/data': with data\.source=s3 it must start with s3://"),
        ({"background": "clear"}, r"background is 'clear': .*an opaque colour, such as white"),
        ({"background": "#ffffff80"}, r"an opaque colour"),
        ({"limits": {"aspect": 0}}, r"limits\.aspect is 0"),
        ({"test_root": "x"}, r"only data\.source=webdataset uses it"),
        ({"source": "huggingface", "class_names": "imagenet"}, r"num_classes is 3: .* so set 1000"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_config(**{"source": "imagefolder"} | settings)


def test_an_http_mirror_needs_an_http_address() -> None:
    with pytest.raises(ConfigError, match="location is 'ftp://x'"):
        MirrorConfig("http", "ftp://x")
