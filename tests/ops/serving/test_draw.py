"""``tokenbridge sample``: a picture of samples."""

from pathlib import Path

import pytest
from PIL import Image

from tests.support.small_pipeline import build_pipeline
from tokenbridge.cli import main
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.serving.draw import FORMATS
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer


@pytest.fixture
def folder(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer, tmp_path: Path) -> Path:
    build_pipeline(model, quantizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def picture(folder: Path, *arguments: str) -> bytes:
    out = folder.parent / "grid.png"
    main(["sample", "--model", str(folder), "--class", "Sneaker", "--count", "4", "--out", str(out), *arguments])
    return out.read_bytes()


def test_the_command_draws_a_grid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = picture(folder, "--steps", "4")
    assert "4 images of Sneaker" in capsys.readouterr().out
    assert picture(folder, "--steps", "4") == first


@pytest.mark.parametrize(
    "option",
    [
        ["--seed", "1"],
        ["--steps", "3"],
        ["--guidance-scale", "2"],
        ["--guidance-schedule", "constant"],
        ["--guidance-interval", "0", "0.5"],
        ["--guidance-on", "output"],
        ["--temperature", "0.1"],
        ["--top-p", "0.1"],
        ["--order", "raster"],
    ],
)
def test_every_option_tells(folder: Path, option: list[str]) -> None:
    strong = ["--guidance-scale", "99"]  # random weights hardly know the class
    assert picture(folder, *strong, *option) != picture(folder, *strong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "Hat"], "no class 'Hat'"),
        (["--count", "0"], "at least one image"),
        (["--steps", "99"], "at most 16 steps"),
        (["--top-p", "0"], "top_p is 0"),
        (["--guidance-interval", "0.5", "0.2"], "from < to"),
    ],
)
def test_the_command_ends_with_one_line(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["sample", "--model", str(folder), *arguments])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_suffix_decides_the_format(folder: Path, suffix: str) -> None:
    out = folder.parent / f"grid{suffix}"
    main(["sample", "--model", str(folder), "--class", "Sneaker", "--count", "1", "--steps", "1", "--out", str(out)])
    assert Image.open(out).format == FORMATS[suffix]


EDIT = "edit --image in.png --keep left --class Bag --out"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample --out pictures", "is a folder: name a file"),
        ("sample --out grid.gif", ".jpg"),
        (f"{EDIT} pictures", "is a folder: name a file"),
        (f"{EDIT} grid.gif", ".jpg"),
        ("plan --json pictures", "is a folder: name a file"),
    ],
)
def test_a_bad_target_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    """No model is there, which would be the first error otherwise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/letter").write_text("precious")
    with pytest.raises(SystemExit, match=message):
        main(command.split())
    assert (tmp_path / "pictures/letter").read_text() == "precious"
