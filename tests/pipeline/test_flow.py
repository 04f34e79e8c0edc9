"""The Prefect flow, as a user without any server runs it."""

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.pipeline.project import STAGES, Project, descendant, wait_for
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.pipeline


def failing_flow(project: Project, override: str) -> str:
    return project.run("python", "-m", "flows.retrain", *project.overrides, override, fails=True)


def ask(project: Project, query: str) -> list[Any]:
    """Rows of Prefect's own database."""
    with closing(sqlite3.connect(project.root / ".prefect/prefect.db")) as database:
        return database.execute(query).fetchall()


def task_states(project: Project) -> dict[str, str]:
    """Task -> name of its state, in the newest flow run."""
    newest = "SELECT id FROM flow_run ORDER BY created DESC LIMIT 1"
    return dict(ask(project, f"SELECT name, state_name FROM task_run WHERE flow_run_id = ({newest})"))


def artifacts(project: Project) -> dict[str, Any]:
    """Key -> content; of several with one key, the newest."""
    return dict(ask(project, "SELECT key, data FROM artifact ORDER BY created"))


def test_the_flow_waits_for_its_turn_runs_what_changed_and_shows_it(project: Project) -> None:
    project.settle()
    first = project.start_repro("evaluate.kid_subsets=8")
    stage = wait_for(lambda: descendant(first, "-m", "tokenbridge.stages", "evaluate@tiny"), "process of evaluate")
    stage.suspend()  # so that it surely lives when the flow starts
    second = project.start("python", "-m", "flows.retrain", *project.overrides, "evaluate.kid_subsets=9")
    assert second.stdout is not None
    assert any("another process is using the pipeline" in line for line in second.stdout)
    stage.resume()
    for process in (first, second):
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
    assert [run.data.params["evaluate.kid_subsets"] for run in project.runs("evaluate@tiny")[-2:]] == ["8", "9"]
    assert {run.info.status for run in project.runs("pipeline")[-2:]} == {"FINISHED"}
    assert "Data and pipelines are up to date" in project.run("dvc", "status")

    assert task_states(project) == dict.fromkeys(STAGES, "Skipped") | {"evaluate@tiny": "Completed"}
    assert "Task run 'evaluate@tiny' - features of samples: 500/500 images" in output  # the stage's own words
    shown = artifacts(project)
    assert set(shown) == {"stages", "metrics", "samples-tiny", "mlflow-run"}
    assert "evaluate@tiny/fd_efficientnet_lite0_32px" in shown["metrics"].replace("_tiny/", "@tiny/")
    assert json.loads(shown["samples-tiny"]).startswith("data:image/jpeg;base64,")
    assert project.runs("evaluate@tiny")[-1].data.tags["mlflow.parentRunId"] == project.runs("pipeline")[-1].info.run_id


def test_a_failing_stage_ends_the_flow_with_its_message(project: Project) -> None:
    output = failing_flow(project, "vae.pretrained=/nonexistent")
    assert "vae: /nonexistent is missing: name a folder" in output
    assert "Traceback" not in output
    assert "Retry" not in output  # another try cannot fix a setting
    assert "retrain: vae failed, as its log says; not run: encode, fit_quantizer, reconstruct, train@tiny" in output
    states = task_states(project)
    assert states["vae"] == "Failed"
    assert {states[stage] for stage in ("encode", "train@tiny", "evaluate@tiny")} == {"NotReady"}
    assert project.runs("pipeline")[-1].info.status == "FAILED"


def test_a_wrong_setting_stops_before_prefect_starts(project: Project) -> None:
    output = failing_flow(project, "train.lrr=1")
    assert output.startswith("retrain: Could not override 'train.lrr'")
    assert len(output.splitlines()) == 1
