"""Stage ``fetch``: a source's images become shards and a picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sources.conftest import CLASSES, picture
from tests.stages.conftest import configure
from tests.support.services import S3Place
from tokenbridge.base.files import read_json, sha256_tree
from tokenbridge.base.image_grid import GAP
from tokenbridge.config.params import load_params
from tokenbridge.images.shards import ImageShards
from tokenbridge.sources.fetch import fetch_images
from tokenbridge.stages import fetch
from tokenbridge.stages.runtime import MISTAKE_CODE

SETTINGS = [
    "data=imagefolder",
    "data.root=pictures",
    "data.num_classes=3",
    "data.image_size=8",
    "generate.samples=6",
    "evaluate.kid_subset_size=3",
]


@pytest.fixture
def pictures(repository: Path) -> Path:
    """A repository whose source is a folder of 3 classes with 4 images each."""
    for label, name in enumerate(CLASSES):
        (repository / "pictures" / name).mkdir(parents=True)
        for index in range(4):
            picture(4 * label + index).save(repository / "pictures" / name / f"{index}.png")
    configure(repository, *SETTINGS)
    return repository


def test_the_stage_writes_shards_and_a_picture_with_a_row_for_each_class(pictures: Path) -> None:
    fetch.main()
    train = ImageShards(pictures / "data/images", "train")
    assert len(train) == 6
    shown = np.asarray(Image.open(pictures / "reports/fetch/images.png"))
    pitch = 64 + GAP  # 8 pixels enlarged to 64
    assert shown.shape[0] == 3 * pitch - GAP
    first_column = shown[:, shown.shape[1] - 10 * pitch + GAP :]
    for label in range(3):
        first = int(np.flatnonzero(train.labels == label)[0])
        tile = first_column[label * pitch : label * pitch + 64 : 8, 0:64:8]
        np.testing.assert_array_equal(tile.transpose(2, 0, 1), train.read(first, first + 1)[0][0])


@pytest.mark.pipeline
def test_the_stage_finds_s3_by_the_settings(pictures: Path, s3_place: S3Place) -> None:
    s3_place.fill(pictures / "pictures")
    local = fetch_images(load_params(pictures).data, pictures / "local")
    distant = ["data=s3", f"data.root={s3_place.uri}", f"storage.endpoint={s3_place.server.endpoint}", *SETTINGS[2:]]
    configure(pictures, *distant)
    fetch.main()
    assert read_json(pictures / "data/images/manifest.json")["digest"] == local["digest"]


def test_a_bad_image_ends_the_stage_with_one_message_and_the_previous_images_stay(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_images(load_params(pictures).data, pictures / "data/images")
    before = sha256_tree(pictures / "data/images")
    (pictures / "pictures/Coat/2.png").write_bytes(b"\x89PNG cut short")
    with pytest.raises(SystemExit) as stop:
        fetch.main()
    assert stop.value.code == MISTAKE_CODE
    assert (
        capsys.readouterr().err
        == "fetch: pictures/Coat/2.png is not an image (JPEG, PNG, WebP, GIF or BMP): replace or delete it\n"
    )
    assert sha256_tree(pictures / "data/images") == before
