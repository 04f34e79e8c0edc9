"""Checkpoints of the released code as pipeline folders; that they compute the same is tests/model/test_golden.py."""

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.golden import SETTINGS, released_weights, write_released, write_vae
from tests.support.checkout import CHECKOUT
from tokenbridge.base.errors import UserError
from tokenbridge.cli import main
from tokenbridge.config import Config
from tokenbridge.ops.exchange.tokenbridge_checkpoint import BUFFERS, CheckpointSettings, import_tokenbridge
from tokenbridge.ops.exchange.weights import ImportFailedError
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.levels import gaussian_levels
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

RAW = released_weights()
AVERAGED = {name: tensor * 0.5 for name, tensor in RAW.items() if name not in BUFFERS}
BOTH = {"model": RAW, "model_ema": AVERAGED}
Import = Callable[..., TokenBridgePipeline]


def save(file: Path, content: dict[str, Any]) -> Path:
    """A checkpoint with what the released training script saves beside its weights."""
    beside = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 399, "scaler": {"scale": 65536.0}}
    torch.save(content | beside | {"args": Namespace(model="tokenbridge_tiny")}, file)
    return file


@pytest.fixture
def imported(tmp_path: Path, vae_folder: Path) -> Import:
    """Writes a checkpoint of some content, and imports it into imported/."""

    def run(
        content: dict[str, Any], weights: str = "ema", vae_folder: Path = vae_folder, **changes: Any
    ) -> TokenBridgePipeline:
        checkpoint, settings = save(tmp_path / "checkpoint.pth", content), replace(SETTINGS, **changes)
        import_tokenbridge(checkpoint, tmp_path / "imported", vae_folder, settings, weights=weights)
        return TokenBridgePipeline.from_pretrained(tmp_path / "imported")

    return run


@pytest.mark.parametrize(
    ("content", "weights", "taken"),
    [
        (BOTH, "raw", RAW),
        (BOTH, "ema", AVERAGED),  # with the raw model's buffers
        ({"model": {}, "model_ema": RAW | AVERAGED}, "ema", AVERAGED),
    ],
)
def test_the_weights_asked_for_are_taken_with_their_level_values(
    imported: Import, content: dict[str, Any], weights: str, taken: dict[str, Tensor]
) -> None:
    pipeline = imported(content, weights)
    assert torch.equal(pipeline.transformer.output_position, taken["output_pos_embed"])
    levels = RAW["reconstruction_values"] * 5 / 3
    torch.testing.assert_close(pipeline.quantizer.levels[3], levels, atol=1e-6, rtol=0)


def test_without_buffers_the_level_values_are_computed(imported: Import) -> None:
    levels = imported({"model_ema": AVERAGED}).quantizer.levels
    torch.testing.assert_close(levels[3], (gaussian_levels(64) * 5 / 3).float(), atol=1e-6, rtol=0)


def test_weights_that_are_not_there_are_named(imported: Import) -> None:
    with pytest.raises(ImportFailedError, match=r"no model_ema.*--weights"):
        imported({"model": RAW})


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in RAW.items()}


@pytest.mark.parametrize(
    "content",
    [
        {"model": prefixed("_orig_mod."), "model_ema": prefixed("_orig_mod.")},
        {"model_ema": prefixed("module._orig_mod.")},
        {"state_dict": prefixed("model.")},
        {"ema": RAW},
    ],
)
def test_what_trainers_add_to_names_and_files_is_taken_off(imported: Import, content: dict[str, Any]) -> None:
    assert torch.equal(imported(content).transformer.output_position, RAW["output_pos_embed"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": RAW, "model_ema": list(RAW.values())}, "model_ema is a list"),
        ({"net": RAW}, r"net \(dict\)"),
        ({"model_ema": RAW | {"module.z_proj.bias": RAW["z_proj.bias"]}}, "a tensor twice"),
        ({"model_ema": RAW | {"z_proj.bias": RAW["z_proj.bias"] * math.nan}}, r"z_proj\.bias contains NaN"),
        ({"model_ema": RAW | {"reconstruction_values": torch.full((64,), math.inf)}}, "levels contain NaN"),
        ({"model_ema": RAW | {"reconstruction_values": torch.zeros(3)}}, "should hold 64 values"),
        ({"model_ema": RAW | {"output_pos_embed": torch.zeros(3)}}, r"output_pos_embed has shape \[3\]"),
        ({"model_ema": RAW | {"z_proj.weight": torch.zeros(0, 16)}}, "none of size 0"),
        ({"model_ema": RAW | {f"encoder_blocks.{'9' * 9}.norm1.bias": torch.zeros(1)}}, "Left over: encoder_blocks.9"),
    ],
)
def test_a_checkpoint_that_is_not_right_is_explained(imported: Import, content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        imported(content)


def test_the_quantizer_speaks_the_units_of_the_vae(imported: Import) -> None:
    quantizer: DimensionwiseQuantizer = imported(BOTH).quantizer
    vae_latents = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(quantizer.normalize(vae_latents), vae_latents * 0.2325)
    assert quantizer.dimension_order.tolist() == [8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5]


SHOW_SIZES = ["z_proj.weight", "output_pos_embed", "channel_heads.0.weight"]


@pytest.mark.parametrize("name", [*SHOW_SIZES, "mask_token", "channel_heads.15.bias", "encoder_blocks.0.norm1.bias"])
def test_a_missing_tensor_is_named(imported: Import, name: str) -> None:
    rest = {other: tensor for other, tensor in RAW.items() if other != name}
    with pytest.raises(ImportFailedError, match=f"has no {name}" if name in SHOW_SIZES else f"Missing: {name}"):
        imported({"model": rest}, "raw")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 64}, "16 positions.*8 x 8"),
        ({"heads": 5}, "5 heads"),
        ({"latent_scale": 0.0}, "latent_scale is 0.0: must be greater than 0"),
        ({"dimension_order": (1, 0)}, "names 2 of 16"),
        ({"dimension_order": (0,) * 16}, "not an order"),
        ({"image_size": 64, "vae_stride": 16}, "stride of 8"),
        ({"image_size": 64, "patch_size": 2}, "tokens of 64 dimensions"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(
    imported: Import, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        imported(BOTH, **changes)
    assert not (tmp_path / "imported").exists()


def test_a_token_may_cover_a_patch_of_the_vae(imported: Import, tmp_path: Path) -> None:
    vae_folder = write_vae(tmp_path / "vae", dimensions=4, stride=4)
    pipeline = imported(BOTH, vae_folder=vae_folder, vae_stride=4, patch_size=2)
    (images,) = pipeline(class_labels=[3], num_inference_steps=2, return_dict=False)
    assert images[0].size == (32, 32)


def test_the_released_settings_are_those_of_the_experiments(released_config: Config) -> None:
    settings = CheckpointSettings.of(released_config)
    assert settings.latent_scale == pytest.approx(0.2325)
    assert settings.dimension_order == SETTINGS.dimension_order
    assert (settings.heads, settings.image_size, settings.vae_stride, settings.patch_size) == (16, 256, 16, 1)


def test_the_command(tmp_path: Path, vae_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"), encoding="utf-8-sig")
    monkeypatch.chdir(CHECKOUT)
    arguments = ["import", "tokenbridge", str(write_released(tmp_path)), "--out", str(tmp_path / "out")]
    arguments += ["--vae", str(vae_folder)]
    arguments += ["--image-size", "32", "--vae-stride", "8", "--heads", "4"]
    main([*arguments, "--label-names", str(tmp_path / "names.txt")])
    pipeline = TokenBridgePipeline.from_pretrained(tmp_path / "out")
    assert pipeline.config.label_names == list("abcdefghij")
    (images,) = pipeline(class_labels=["c"], num_inference_steps=2, return_dict=False)
    assert images[0].size == (32, 32)
    with pytest.raises(SystemExit, match="is there already"):
        main(arguments)
    (tmp_path / "names.txt").write_text("rosé", encoding="latin-1")
    arguments[arguments.index(str(tmp_path / "out"))] = str(tmp_path / "other")
    with pytest.raises(SystemExit, match=r"names.txt is no text in UTF-8: save it as UTF-8"):
        main([*arguments, "--label-names", str(tmp_path / "names.txt")])


def test_the_command_says_where_the_vae_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    with pytest.raises(SystemExit, match="pretrained/kl16"):
        main(["import", "tokenbridge", str(write_released(tmp_path)), "--out", str(tmp_path / "out")])
