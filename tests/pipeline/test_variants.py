"""The same pipeline by another way: on stored tokens, with a model from elsewhere, as an ablation."""

import shutil
from pathlib import Path

import pytest

from tests.pipeline.project import Project, outcomes
from tokenbridge.base.files import read_json

pytestmark = pytest.mark.pipeline


def test_a_model_can_be_trained_on_stored_tokens(project: Project) -> None:
    project.settle()
    said = outcomes(project.repro("tokens=packed"))
    assert (said["encode"], said["fit_quantizer"]) == ("skipped", "skipped")
    assert (said["tokenize@tokens"], said["train@tiny"], said["evaluate@tiny"]) == ("ran", "ran", "ran")
    report = read_json(project.root / "reports/tokenize.json")
    assert (report["samples"], report["flips"]) == (4, 1)
    assert report["sample_bytes"] == 16 * 8 * 4 / 8  # positions, dimensions, bits of 16 levels, bits of a byte
    assert report["npz_ratio"] > report["moments_ratio"] > 1


def test_a_pretrained_model_is_evaluated_without_training(project: Project, tmp_path: Path) -> None:
    project.settle()
    trained = project.digest("models/tiny/transformer")
    shutil.copytree(project.root / "models/tiny", tmp_path / "elsewhere")
    output = project.repro(f"models.tiny.pretrained={tmp_path / 'elsewhere'}")
    assert outcomes(output)["train@tiny"] == "ran"
    assert "train: " not in output  # its progress
    assert project.digest("models/tiny/transformer") == trained
    assert outcomes(output)["generate@tiny"] == "skipped"  # the folder is the same for DVC
