"""The functions for notebooks: what they keep apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenbridge
from tests.support.small_project import write_inputs
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import write_json
from tokenbridge.config.params import load_params
from tokenbridge.stages import evaluate, generate
from tokenbridge.stages.context import StageContext
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer


@pytest.fixture
def root(tmp_path: Path, vae_latents: Tensor, quantizer: DimensionwiseQuantizer) -> Path:
    write_inputs(tmp_path, vae_latents, quantizer, ["train.batch_size=8", "train.epochs=0.25"])
    return tmp_path


def test_a_folder_continues_only_the_training_that_it_has(
    root: Path, vae_latents: Tensor, quantizer: DimensionwiseQuantizer
) -> None:
    def trained(folder: str, *changes: str) -> list[Tensor]:
        pipeline = tokenbridge.train(load_params(root, changes), "tiny", root / folder, root)
        return list(pipeline.transformer.parameters())

    first = trained("first")
    assert all(map(torch.equal, first, trained("first")))
    assert not all(map(torch.equal, first, trained("second", "models.tiny.train.seed=7")))
    with pytest.raises(UserError, match=r"first has a training with other settings or inputs: choose another folder"):
        trained("first", "models.tiny.train.seed=7")
    quantizer.levels *= 2
    quantizer.save_pretrained(root / "models/quantizer")
    with pytest.raises(UserError, match=r"first has a training with other settings or inputs"):
        trained("first")


def test_samples_and_their_features_have_precisions_of_their_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that is resumed keeps its precision, so each must have a work folder of its own."""
    computed: dict[str, Any] = {}

    def draw(context: StageContext) -> None:
        computed["samples"] = context.precision("bf16")
        (context.work / "samples").mkdir()

    def measure(context: StageContext) -> None:
        computed["features"] = context.precision("fp32")
        write_json(context.work / "metrics.json", computed)

    for stage, work in ((generate, draw), (evaluate, measure)):
        monkeypatch.setattr(stage, "work", work)
    monkeypatch.setattr(generate, "check", lambda config, root: None)
    assert tokenbridge.evaluate("models/vae", load_params(root), root) == {"samples": "bf16", "features": "fp32"}
