"""A change runs only what depends on it, and its run is rebuilt from its id: restored, and computed again."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.pipeline.project import STAGES, Project, outcomes
from tokenbridge.base.files import read_json, sha256_tree

pytestmark = pytest.mark.pipeline

CHANGED = "generate.steps=2"  # cheap: all before the samples stays
AFFECTED = ["generate@tiny", "evaluate@tiny"]


@pytest.fixture(scope="module")
def changed_run(project: Project) -> tuple[str, str]:
    """The id and the output of a run with another setting, and an uncommitted change of what draws the samples."""
    project.settle()
    module = project.root / "tokenbridge/sampling/samples.py"  # only `generate` depends on it
    committed = module.read_text()
    module.write_text(committed + "\nDEPARTURE = 1\n")
    trap = project.root / "shtab.py"  # dvc imports a module of this name
    trap.write_text("FILE = DIRECTORY = None\nopen(f'{__file__}.executed', 'w').close()\n")
    output = project.repro(CHANGED)
    module.write_text(committed)
    for left in project.root.glob(f"{trap.name}*"):
        left.unlink()
    return project.runs("pipeline")[-1].info.run_id, output


def reproduce(project: Project, *arguments: str, fails: bool = False) -> str:
    return project.run("python", "-m", "tokenbridge.cli", "reproduce", *arguments, fails=fails)


def folder(project: Project, run_id: str) -> Path:
    return project.root / ".work/reproduce" / run_id


def which(output: str, outcome: str) -> list[str]:
    """The stages with this outcome."""
    return [stage for stage, found in outcomes(output).items() if found == outcome]


def test_a_changed_run_is_restored_without_computing_anything(project: Project, changed_run: tuple[str, str]) -> None:
    run_id, output = changed_run
    assert which(output, "ran") == AFFECTED
    progress = [line for line in output.splitlines() if line.startswith("pipeline: ")]
    assert progress[0].startswith("pipeline: 0 of 2 stages done; still to come: generate@tiny (")
    assert progress[-1] == "pipeline: 2 of 2 stages done"
    wanted = sha256_tree(project.root / "data/samples/tiny")
    back = project.repro()  # the workspace is another run's now
    assert (which(back, "cached"), which(back, "ran")) == (AFFECTED, [])
    here = project.digest("data/samples/tiny")

    output = reproduce(project, run_id)
    assert "restored in" in output
    assert "the same bits" in output
    assert "Running stage" not in output
    rebuilt = folder(project, run_id)
    assert [path.name for path in rebuilt.glob("shtab*")] == ["shtab.py"]  # restored, and not executed
    assert sha256_tree(rebuilt / "data/samples/tiny") == wanted != here
    assert project.digest("data/samples/tiny") == here  # your own files stay as they are
    assert "DEPARTURE" in (rebuilt / "tokenbridge/sampling/samples.py").read_text()  # never committed
    assert yaml.safe_load((rebuilt / "params.yaml").read_text())["generate"]["steps"] == 2

    cache = project.root / ".dvc/cache/files"
    hidden = cache.rename(cache.with_name("hidden"))
    shutil.rmtree(rebuilt / "models")
    output = reproduce(project, run_id, fails=True)
    hidden.rename(cache)
    assert "not in DVC's cache, and no remote gives it" in output
    assert "recompute it with --recompute" in output


def test_a_run_is_computed_again_with_the_same_bits(project: Project, changed_run: tuple[str, str]) -> None:
    run_id, _ = changed_run
    (stage_run,) = [run for run in project.runs("generate@tiny") if run.data.tags.get("mlflow.parentRunId") == run_id]
    output = reproduce(project, run_id, "--recompute", fails=True)
    assert "+DEPARTURE = 1" in output
    assert output.splitlines()[-1].endswith("would be executed: read them, and repeat with --trust")
    output = reproduce(project, stage_run.info.run_id, "--recompute", "--trust")  # a stage's run leads to its pipeline
    assert "the same bits" in output
    # all stages, not only those that the change touched; images are restored, since their source may have grown
    assert {*which(output, "ran")} == {*STAGES} - {"fetch"}
    report = read_json(folder(project, run_id) / "reproduction.json")
    assert report["changed"] == report["drifted"] == report["machine"] == []
    assert report["outs"] > 20
    assert report["metrics"] > 20
    run = project.runs("reproduction")[-1]
    assert (run.data.tags["reproduces"], run.data.tags["exact"]) == (run_id, "true")
    assert project.runs("train@tiny")[-1].data.tags["mlflow.parentRunId"] == run.info.run_id
