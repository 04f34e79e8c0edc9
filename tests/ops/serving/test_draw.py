"""``tokenbridge sample``: a picture of samples."""

from pathlib import Path

import pytest

from tests.support.small_pipeline import build_pipeline
from tokenbridge.cli import main
from tokenbridge.model import TokenBridgeTransformer
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
        ["--temperature", "0.1"],
        ["--top-p", "0.1"],
        ["--order", "raster"],
    ],
)
def test_every_option_tells(folder: Path, option: list[str]) -> None:
    strong = ["--guidance-scale", "9"]
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
