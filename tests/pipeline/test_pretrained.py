"""The same pipeline with a model from elsewhere."""

import shutil
from pathlib import Path

import pytest

from tests.pipeline.project import Project, outcomes

pytestmark = pytest.mark.pipeline


def test_a_pretrained_model_is_evaluated_without_training(project: Project, tmp_path: Path) -> None:
    project.settle()
    trained = project.digest("models/tiny/transformer")
    shutil.copytree(project.root / "models/tiny", tmp_path / "elsewhere")
    output = project.repro(f"models.tiny.pretrained={tmp_path / 'elsewhere'}")
    assert outcomes(output)["train@tiny"] == "ran"
    assert "train: " not in output  # its progress
    assert project.digest("models/tiny/transformer") == trained
    assert outcomes(output)["generate@tiny"] == "skipped"  # the folder is the same for DVC
