"""``tokenbridge export --checkpoint``: a training that has not ended, as a pipeline folder."""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.ops.exchange.conftest import export, refused
from tests.support.checkout import CHECKOUT
from tests.support.dvc import init_dvc
from tests.support.small_model import Silent
from tests.support.small_pipeline import NAMES
from tests.support.small_project import write_inputs
from tokenbridge.cli import main
from tokenbridge.config.params import PARAMS_FILE, load_params
from tokenbridge.engine.loop import InterruptedTrainingError
from tokenbridge.infra.dvc import read_stages
from tokenbridge.ops.exchange import checkpoint_export
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.trainer import CHECKPOINTS, train

DONE, TOTAL = 6, 16  # steps of 32 images; an evaluation every four


@pytest.fixture
def project(
    tmp_path: Path, vae_latents: Tensor, quantizer: DimensionwiseQuantizer, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A project with all that the stage ``train@tiny`` needs, which is the current folder."""
    shutil.copy(CHECKOUT / "dvc.yaml", tmp_path)
    init_dvc(tmp_path)
    write_inputs(tmp_path, vae_latents, quantizer, ["train.epochs=8", "train.evaluations=4"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(project: Path, quantizer: DimensionwiseQuantizer) -> Path:
    """The checkpoint of a training that was interrupted."""
    config = load_params(project)
    folder = project / ".work/train@tiny" / read_stages(project)["train@tiny"].key
    data = FreshTokens(Moments(project / "data/moments"), quantizer)
    left = iter(range(DONE))
    with suppress(InterruptedTrainingError):
        train(
            config.models["tiny"],
            data,
            data,
            quantizer,
            folder=folder,
            launcher=config.launcher,
            tracker=Silent(),
            device=torch.device("cpu"),
            stop=lambda: next(left) == DONE - 1,
        )
    return folder / CHECKPOINTS / f"step-{DONE:08d}"


def test_the_averaged_weights_so_far_are_a_pipeline(checkpoint: Path) -> None:
    readme = export("--checkpoint")
    assert f"# TokenBridge `tiny` after step {DONE} of {TOTAL}" in readme
    assert "(of levels: nats per dimension), after step 4." in readme
    saved: dict[str, Tensor] = {}
    for file in checkpoint.glob("*.safetensors"):
        saved |= load_file(file)
    pipeline = TokenBridgePipeline.from_pretrained("out/tiny")
    assert pipeline.class_names == NAMES
    weights = dict(pipeline.transformer.named_parameters())
    assert all(torch.equal(weight, saved[f"ema/average/{name}"]) for name, weight in weights.items())
    main(["sample", "--model", "out/tiny", "--count", "1", "--out", "samples.png"])
    assert Image.open("samples.png").width > 0


def test_without_a_checkpoint_it_says_what_to_do(project: Path) -> None:
    message = refused("--checkpoint")
    assert "has no whole checkpoint" in message
    assert "if it has ended, leave out --checkpoint" in message
    message = refused("--checkpoint", model="other")
    assert "dvc.yaml trains no model 'other': choose one of tiny" in message


def test_one_of_other_settings_is_not_taken(checkpoint: Path) -> None:
    OmegaConf.update(params := OmegaConf.load(PARAMS_FILE), "models.tiny.train.seed", 5)
    OmegaConf.save(params, PARAMS_FILE)
    assert "if params.yaml, code or data changed since it began, set them back" in refused("--checkpoint")


def test_a_checkpoint_that_the_training_removes_meanwhile_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanishing(root: Path, name: str) -> Path:
        shutil.rmtree(checkpoint)
        return checkpoint

    monkeypatch.setattr(checkpoint_export, "_newest_checkpoint", vanishing)
    assert f"{checkpoint} was removed while it was read" in refused("--checkpoint")
    assert not Path("out/tiny").exists()
