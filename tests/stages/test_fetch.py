"""The stage as DVC runs it: a process in a repository, with params.yaml."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.sources.conftest import CLASSES, picture
from tests.support.checkout import CHECKOUT
from tests.support.services import S3Place
from tokenbridge.base.files import read_json, sha256_tree
from tokenbridge.base.image_grid import GAP
from tokenbridge.config import DataConfig
from tokenbridge.config.params import compose_config, load_params
from tokenbridge.images.shards import ImageShards
from tokenbridge.sources.fetch import fetch_images
from tokenbridge.stages import fetch
from tokenbridge.stages.runtime import MISTAKE_CODE

DVC_YAML = """
stages:
  fetch:
    cmd: python -m tokenbridge.stages.fetch
    params: [data]
    outs: [data/images]
    plots: [reports/fetch/images.png]
"""


SETTINGS = [
    "data=imagefolder",
    "data.root=pictures",
    "data.num_classes=3",
    "data.image_size=8",
    "generate.steps=1",
    "generate.samples=6",
    "evaluate.kid_subset_size=3",
]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A DVC repository with the stage, whose source is a folder of 3 classes with 4 images each."""
    for label, name in enumerate(CLASSES):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(4):
            picture(4 * label + index).save(tmp_path / "pictures" / name / f"{index}.png")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text(OmegaConf.to_yaml(compose_config(SETTINGS, CHECKOUT / "conf")))
    return tmp_path


def config_of(repository: Path) -> DataConfig:
    """The repository's settings, for use from another working folder."""
    return replace(load_params(repository).data, root=str(repository / "pictures"))


def run_stage(repository: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokenbridge.stages.fetch"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


@pytest.mark.pipeline
def test_the_stage_writes_shards_and_a_picture(repository: Path) -> None:
    done = run_stage(repository)
    assert done.returncode == 0, done.stderr
    assert len(ImageShards(repository / "data/images", "train")) == 6
    assert Image.open(repository / "reports/fetch/images.png").width > 640


@pytest.mark.pipeline
def test_the_stage_finds_s3_by_the_settings(repository: Path, s3_place: S3Place) -> None:
    s3_place.fill(repository / "pictures")
    local = fetch_images(config_of(repository), repository / "local")
    distant = ["data=s3", f"data.root={s3_place.uri}", f"storage.endpoint={s3_place.server.endpoint}", *SETTINGS[2:]]
    (repository / "params.yaml").write_text(OmegaConf.to_yaml(compose_config(distant, CHECKOUT / "conf")))
    done = run_stage(repository)
    assert done.returncode == 0, done.stderr
    assert read_json(repository / "data/images/manifest.json")["digest"] == local["digest"]


@pytest.mark.pipeline
def test_a_bad_image_ends_the_stage_with_one_message_and_the_previous_images_stay(repository: Path) -> None:
    fetch_images(config_of(repository), repository / "data/images")
    before = sha256_tree(repository / "data/images")
    (repository / "pictures/Coat/2.png").write_bytes(b"\x89PNG cut short")
    done = run_stage(repository)
    assert done.returncode == MISTAKE_CODE
    assert "fetch: pictures/Coat/2.png is not an image: replace or delete it" in done.stderr
    assert "Traceback" not in done.stderr
    assert sha256_tree(repository / "data/images") == before


def test_the_picture_has_a_row_for_each_class(repository: Path) -> None:
    fetch_images(config_of(repository), repository / "images")
    train = ImageShards(repository / "images", "train")
    shown = np.asarray(fetch.picture(train))
    pitch = 64 + GAP  # 8 pixels enlarged to 64
    assert shown.shape[0] == 3 * pitch - GAP
    first_column = shown[:, shown.shape[1] - 10 * pitch + GAP :]
    for label in range(3):
        first = int(np.flatnonzero(train.labels == label)[0])
        tile = first_column[label * pitch : label * pitch + 64 : 8, 0:64:8]
        np.testing.assert_array_equal(tile.transpose(2, 0, 1), train.read(first, first + 1)[0][0])
