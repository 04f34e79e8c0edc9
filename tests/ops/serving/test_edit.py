"""``tokenbridge edit``: a picture of edits."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sources.conftest import encode, picture
from tests.support.small_pipeline import build_pipeline
from tokenbridge.base.image_grid import GAP, MIN_SIDE
from tokenbridge.cli import main
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.serving.edit import COVER_GREY, keep_mask
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer


@pytest.fixture
def folder(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer, tmp_path: Path) -> Path:
    build_pipeline(model, quantizer).save_pretrained(tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / "in.png")
    return tmp_path


def edit(folder: Path, *arguments: str) -> Image.Image:
    out = folder / "out.png"
    fixed = ["--model", folder / "model", "--image", folder / "in.png", "--class", "bag", "--out", out]
    main(["edit", *map(str, fixed), *arguments])
    return Image.open(out)


def test_the_command_shows_the_image_what_is_kept_and_the_edits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(folder / "in.png")
    picture = edit(folder, "--keep", "left", "--image", image, "--count", "3", "--steps", "2")
    assert picture.size == (5 * (MIN_SIDE + GAP) - GAP, 2 * (MIN_SIDE + GAP) - GAP)
    assert "3 edits of each of 2 images as Bag" in capsys.readouterr().out
    shown = np.asarray(picture)
    kept = shown[:MIN_SIDE, MIN_SIDE + GAP : 2 * MIN_SIDE + GAP]
    assert np.array_equal(kept[:, : MIN_SIDE // 2], shown[:MIN_SIDE, : MIN_SIDE // 2])
    assert (kept[:, MIN_SIDE // 2 :] == COVER_GREY).all()


def test_transparent_images_are_shown_on_white_and_damaged_exif_is_passed_over(folder: Path) -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 1, 0)
    Image.new("RGBA", (16, 16), (0, 255, 0, 0)).save(folder / "in.png", exif=broken)
    assert (np.asarray(edit(folder, "--keep", "left"))[:MIN_SIDE, :MIN_SIDE] == 255).all()


def test_the_same_command_makes_the_same_picture(folder: Path) -> None:
    first, second, other = (np.asarray(edit(folder, "--keep", "top", "--seed", seed)) for seed in ("0", "0", "1"))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_mask_of_half_the_picture_is_a_side(folder: Path) -> None:
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 12:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    masked = np.asarray(edit(folder, "--mask", str(folder / "mask.png")))
    assert np.array_equal(masked, np.asarray(edit(folder, "--keep", "left")))


@pytest.mark.parametrize(
    ("side", "kept"),
    [("left", [[1, 0], [1, 0]]), ("right", [[0, 1], [0, 1]]), ("top", [[1, 1], [0, 0]]), ("bottom", [[0, 0], [1, 1]])],
)
def test_sides(side: str, kept: list[list[int]]) -> None:
    assert keep_mask(side, (2, 2)).astype(int).tolist() == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "middle"], "choose one of left, right, top, bottom"),
        (["--mask", "absent.png"], "no image file absent.png"),
        (["--keep", "left", "--image", "absent.png"], "no image file absent.png"),
        (["--keep", "left", "--image", "/dev/zero"], "no image file /dev/zero"),
        (["--keep", "left", "--image", "sparse.png"], r"sparse.png has 3,000,000,000 bytes, more than"),
        (["--keep", "left", "--image", "eps.png"], r"eps.png is not an image"),
        (["--mask", "line.png"], r"line.png has 300 x 2 pixels, an aspect of more than"),
        (["--keep", "left", "--class", "Hat"], "no class 'Hat'"),
        (["--keep", "left", "--count", "0"], "at least one edit"),
        (["--keep", "left", "--steps", "9"], "at most 8 steps"),
    ],
)
def test_the_command_ends_with_one_line(
    folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "sparse.png").touch()
    os.truncate(folder / "sparse.png", 3 * 10**9)
    (folder / "eps.png").write_bytes(encode(picture(1), "EPS"))
    (folder / "line.png").write_bytes(encode(picture(1, 300, 2)))
    with pytest.raises(SystemExit, match=message):
        edit(folder, *arguments)
