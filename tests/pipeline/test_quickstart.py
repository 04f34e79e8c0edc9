"""The notebook of docs/ runs from its first cell to its last, on the smoke pipeline."""

import json

import pytest

from tests.pipeline.project import Project

pytestmark = pytest.mark.pipeline


def test_the_notebook_runs_and_shows_its_pictures(project: Project) -> None:
    project.settle()
    project.run("jupyter-execute", "docs/quickstart.ipynb", "--output", "../.work/quickstart.ipynb")
    cells = json.loads((project.root / ".work/quickstart.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # levels, reconstructions, samples
    assert "class_accuracy" in "".join(outputs[-1]["data"]["text/plain"])
