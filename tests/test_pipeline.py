"""The pipeline as users hold it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_vae import CONFIG as VAE
from tokenbridge.cli import main
from tokenbridge.loading import LoadError
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.pipeline import TokenBridgePipeline
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.vae_training import build_vae

NAMES = ["Sneaker", "Bag", "Ankle boot"]


@pytest.fixture
def pipeline(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> TokenBridgePipeline:
    torch.manual_seed(0)
    vae = build_vae(VaeFour, 8).eval()
    return TokenBridgePipeline(vae, model, quantizer, NAMES)


VaeFour = type(VAE)(**{**vars(VAE), "dimensions": 4})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(images: list[object]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_labels_go_in_and_pictures_come_out(pipeline: TokenBridgePipeline) -> None:
    images = pipeline(class_labels=[0, "bag"], num_inference_steps=4, guidance_scale=2.0, generator=seeded()).images
    assert [image.size for image in images] == [(8, 8), (8, 8)]


def test_the_same_seed_gives_the_same_pictures(pipeline: TokenBridgePipeline) -> None:
    first, second = (pipeline([0, 1], 4, generator=seeded(1)).images for _ in range(2))
    assert np.array_equal(pixels(first), pixels(second))
    assert not np.array_equal(pixels(first), pixels(pipeline([0, 1], 4, generator=seeded(2)).images))


def test_a_generator_for_each_image_makes_it_independent_of_the_others(pipeline: TokenBridgePipeline) -> None:
    together = pipeline([0, 1], 4, generator=[seeded(1), seeded(2)]).images
    alone = pipeline([1], 4, generator=[seeded(2)]).images
    assert np.array_equal(pixels(together)[1], pixels(alone)[0])


def test_it_survives_saving(pipeline: TokenBridgePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = TokenBridgePipeline.from_pretrained(tmp_path)
    assert loaded.config.label_names == NAMES
    before, after = (each([2], 4, generator=seeded()).images for each in (pipeline, loaded))
    assert np.array_equal(pixels(before), pixels(after))


def test_numpy_output_is_in_the_unit_range(pipeline: TokenBridgePipeline) -> None:
    images = pipeline([0], 4, generator=seeded(), output_type="np").images
    assert images.shape == (1, 8, 8, 3)
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize(("label", "index"), [("sneaker", 0), ("Ankle Boot", 2), (1, 1), ("2", 2)])
def test_classes_by_name_or_index(pipeline: TokenBridgePipeline, label: int | str, index: int) -> None:
    assert pipeline.label_index(label) == index


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"class_labels": ["Hat"]}, "0 Sneaker, 1 Bag, 2 Ankle boot"),
        ({"class_labels": [3]}, "no class 3"),
        ({"class_labels": [-1]}, "no class -1"),
        ({"class_labels": [0], "num_inference_steps": 17}, "at most 16 steps"),
        ({"class_labels": [0], "output_type": "jpeg"}, "'pil' or 'np'"),
        ({"class_labels": [0, 1], "generator": [seeded()]}, "1 generators for 2 images"),
    ],
)
def test_mistakes_are_explained(pipeline: TokenBridgePipeline, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**wrong)


def test_the_command_draws_a_grid(
    pipeline: TokenBridgePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    out = tmp_path / "grid.png"
    command = ["sample", "--model", str(tmp_path / "model"), "--class", "Sneaker", "--count", "4", "--steps", "4"]
    main([*command, "--out", str(out)])
    first = out.read_bytes()
    assert "4 images of Sneaker" in capsys.readouterr().out
    main([*command, "--out", str(out)])
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "Hat"], "no class 'Hat'"),
        (["--count", "0"], "at least one image"),
        (["--steps", "99"], "at most 16 steps"),
    ],
)
def test_the_command_ends_with_one_line(
    pipeline: TokenBridgePipeline, tmp_path: Path, arguments: list[str], message: str
) -> None:
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(["sample", "--model", str(tmp_path), *arguments])


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no trained pipeline"):
        TokenBridgePipeline.from_pretrained(tmp_path)
