"""Stage ``train``: what it trains on, and models that it takes as they are."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.small_model import QUANTIZER, random_model
from tests.support.small_pipeline import build_pipeline
from tests.support.small_project import write_inputs
from tokenbridge.base.files import read_json
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.stages import train
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer


@pytest.fixture
def project(
    repository: Path, vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A repository with all that `train` needs, set to take its model from the folder given/."""
    write_inputs(repository, vae_latents, quantizer, ["+models.tiny.pretrained=given"])
    return repository


def test_a_pretrained_model_is_taken_as_it_is(project: Path, quantizer: DimensionwiseQuantizer) -> None:
    model = random_model()
    build_pipeline(model, quantizer).save_pretrained(project / "given")
    train.main("tiny")
    taken = TokenBridgePipeline.from_pretrained(project / "models/tiny").transformer
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), model.parameters(), strict=True))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert read_json(project / "reports/train/tiny.json") == {"parameters": parameters}
    assert (project / "reports/train/tiny/loss.csv").read_text() == "step,images,loss\n"
    assert (project / "reports/train/tiny/validation.csv").read_text() == "step,images,validation_loss\n"


def test_one_that_is_missing_or_does_not_fit_is_refused(
    project: Path, vae_latents: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main("tiny")
    assert "given is no trained pipeline" in capsys.readouterr().err
    coarse = fit_quantizer(vae_latents, replace(QUANTIZER, levels=4))
    other = build_pipeline(random_model(levels=4, num_classes=2), coarse)
    other.register_to_config(label_names=["a", "b"])
    other.save_pretrained(project / "given")
    with pytest.raises(SystemExit):
        train.main("tiny")
    message = capsys.readouterr().err
    assert "models.tiny.pretrained: given does not fit data and quantizer" in message
    assert "levels is 4, not 8; num_classes is 2, not 3" in message


def test_a_training_reports_its_validation_loss_and_logs_pictures_of_samples(
    repository: Path, vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(repository, vae_latents, quantizer, ["train.sample_grids=true", "generate.samples=12"])
    train.main("tiny")
    with (repository / "reports/train/tiny/validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["images"]) for row in rows] == [("1", "32"), ("2", "64")]
    report = read_json(repository / "reports/train/tiny.json")
    assert report["validation_loss"] == float(rows[-1]["validation_loss"])
    assert "loss" not in report
    pictures = sorted((repository / ".spool").rglob("step-*.png"), key=lambda picture: picture.name)
    assert [picture.name for picture in pictures] == ["step-00000001.png", "step-00000002.png"]
    assert Image.open(pictures[0]).height > 3 * 64  # a row for each of three classes
