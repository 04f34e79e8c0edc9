"""A run rebuilt from its id, on the real pipeline: restored, computed again, and with changes never committed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.pipeline.project import STAGES, Project, outcomes
from tokenbridge.base.files import read_json, sha256_tree

pytestmark = pytest.mark.pipeline

CHANGED = ("generate.steps=2",)  # cheap: all before the samples stays


@pytest.fixture(scope="module")
def run_id(project: Project) -> Iterator[str]:
    """A run of other settings, with an uncommitted change of what draws the samples."""
    project.settle()
    module = project.root / "tokenbridge/sampling/samples.py"  # only `generate` hangs on it
    committed = module.read_text()
    module.write_text(committed + "\nDEPARTURE = 1\n")
    project.repro(*CHANGED)
    module.write_text(committed)
    yield project.runs("pipeline")[-1].info.run_id


def reproduce(project: Project, *arguments: str, fails: bool = False) -> str:
    return project.run("python", "-m", "tokenbridge.cli", "reproduce", *arguments, fails=fails)


def folder(project: Project, run_id: str) -> Path:
    return project.root / ".work/reproduce" / run_id


def test_a_run_is_restored_without_computing_anything(project: Project, run_id: str) -> None:
    wanted = sha256_tree(project.root / "data/samples/tiny")
    project.settle()  # the workspace is another run's now
    here = project.digest("data/samples/tiny")
    output = reproduce(project, run_id)
    assert "restored in" in output
    assert "the same bits" in output
    assert "Running stage" not in output
    rebuilt = folder(project, run_id)
    assert sha256_tree(rebuilt / "data/samples/tiny") == wanted != here
    assert project.digest("data/samples/tiny") == here  # your own files stay as they are
    assert "DEPARTURE" in (rebuilt / "tokenbridge/sampling/samples.py").read_text()  # never committed
    assert yaml.safe_load((rebuilt / "params.yaml").read_text())["generate"]["steps"] == 2


def test_a_run_is_computed_again_with_the_same_bits(project: Project, run_id: str) -> None:
    (stage_run,) = [run for run in project.runs("generate@tiny") if run.data.tags.get("mlflow.parentRunId") == run_id]
    output = reproduce(project, stage_run.info.run_id, "--recompute")  # any stage's run leads to its pipeline
    assert "the same bits" in output
    # all stages, not only those that the change touched; images are restored, since their source may have grown
    assert {stage for stage, outcome in outcomes(output).items() if outcome == "ran"} == {*STAGES} - {"fetch"}
    report = read_json(folder(project, run_id) / "reproduction.json")
    assert report["changed"] == report["drifted"] == report["machine"] == []
    assert report["outs"] > 20
    assert report["metrics"] > 20
    run = project.runs("reproduction")[-1]
    assert (run.data.tags["reproduces"], run.data.tags["exact"]) == (run_id, "true")
    assert project.runs("train@tiny")[-1].data.tags["mlflow.parentRunId"] == run.info.run_id


def test_what_differs_is_named(project: Project, run_id: str) -> None:
    reproduce(project, run_id)
    cache = project.root / ".dvc/cache/files"
    hidden = cache.rename(cache.with_name("hidden"))
    shutil.rmtree(folder(project, run_id) / "models")
    output = reproduce(project, run_id, fails=True)
    hidden.rename(cache)
    assert "not in DVC's cache, and no remote gives it" in output
    assert "recompute it with --recompute" in output


def test_an_unknown_run_is_explained(project: Project) -> None:
    output = reproduce(project, "0" * 32, fails=True)
    assert f"has no run {'0' * 32}: take the id of a `pipeline` row" in output
