"""Servers that go away while flows are running: nothing is lost, and no one has to start anything again but them."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas
import psutil
import pytest

from tests.pipeline.project import Project, first_match, wait_for
from tests.pipeline.test_slurm import ON_SLURM
from tests.stack.conftest import Stack
from tests.stack.team import client, result, run_deployment, runs, start_deployment
from tests.support.slurm import SlurmCluster

pytestmark = pytest.mark.cluster

STAGE = "train@tiny"


@pytest.fixture
def mortal(stack: Stack) -> Iterator[Stack]:
    """Up again afterwards, whatever a test left."""
    yield stack
    assert stack("up").returncode == 0


def training(team: Project) -> Path | None:
    """A checkpoint of the training that is at work."""
    return first_match(team.root / ".work" / STAGE, "*/checkpoint*")


def kill_in_training(team: Project, stack: Stack, services: list[str], started: subprocess.Popen[str]) -> None:
    """Kill the servers once a checkpoint is there; training ends all the same, before any of them is back."""
    wait_for(lambda: training(team), "checkpoint")
    stages = at_work(team)
    for process in stages:
        process.suspend()  # so that the training surely lives when the servers are gone
    for service in services:
        stack.kill(service)
    assert training(team), "the training was over before the servers were killed"
    for process in stages:
        process.resume()
    assert started.poll() is None
    wait_for(lambda: not training(team), "end of the training")


def at_work(team: Project) -> list[psutil.Process]:
    """Stages of this project, and the workers that they started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = any(word.startswith("tokenbridge.stages") for word in process.cmdline())
            if ours and Path(process.cwd()) == team.root:
                found.append(process)
    return found


def is_complete(team: Project) -> bool:
    """Whether MLflow has all of the newest training: every point of its curve, its files, its end."""
    run = runs(team, STAGE)[0]
    curve = pandas.read_csv(team.root / "reports/train/tiny/loss.csv")
    logged = {
        metric.step: metric.value for metric in client(team).get_metric_history(run.info.run_id, "loss") if metric.step
    }
    files = [file.path for file in client(team).list_artifacts(run.info.run_id, "reports/train/tiny")]
    assert logged == pytest.approx(dict(zip(curve["step"], curve["loss"], strict=True)))
    assert files == ["reports/train/tiny/loss.csv", "reports/train/tiny/validation.csv"]
    assert "model.tokenbridge-tiny" in run.data.tags
    parent = client(team).get_run(run.data.tags["mlflow.parentRunId"])
    return bool(run.info.status == parent.info.status == "FINISHED")


def test_a_flow_goes_on_when_prefect_and_mlflow_are_killed_and_started_again(team: Project, mortal: Stack) -> None:
    overrides = [*team.overrides, "train.epochs=4"]
    flow = start_deployment(team, "retrain/retrain", overrides=overrides)
    kill_in_training(team, mortal, ["prefect", "mlflow"], flow)
    assert mortal("up").returncode == 0
    state = result(flow)
    assert state["name"] == "Completed", state
    assert is_complete(team)

    limit = json.loads(team.run("prefect", "gcl", "inspect", "tokenbridge-local", "--output", "json"))
    assert limit["active_slots"] == 0  # what was taken when the server was killed was given back
    again = run_deployment(team, "retrain/retrain", overrides=overrides, only_if_new=True)
    assert again["name"] == "Skipped", again  # the deployment's limit lets it in, and the worker is there


def test_what_could_not_be_stored_is_sent_after_the_pipelines_end(team: Project, mortal: Stack) -> None:
    """MLflow answers, but has no place for artifacts."""
    repro = team.start_repro("train.seed=3")
    kill_in_training(team, mortal, ["seaweedfs"], repro)
    output, _ = repro.communicate()
    assert repro.returncode == 0, output
    assert output.count("does not take runs now") == 1
    assert f"python -m tokenbridge.infra.tracking.sync {team.root}" in output
    assert mortal("up").returncode == 0
    team.run("python", "-m", "tokenbridge.infra.tracking.sync")
    assert is_complete(team)
    assert not list((team.root / ".spool").glob("*/meta.json"))


def test_a_cancelled_flow_cancels_its_job_on_slurm(team: Project, slurm: SlurmCluster) -> None:
    overrides = [*team.overrides, *ON_SLURM, "train.epochs=7"]
    there = slurm.from_outside()
    path = {"PATH": f"{there['PATH']}{os.pathsep}{team.environment['PATH']}"}
    flow = start_deployment(team, "retrain/retrain", there | path, overrides=overrides)
    wait_for(lambda: training(team), "checkpoint")
    (running,) = json.loads(team.run("prefect", "flow-run", "ls", "--state-type", "RUNNING", "--output", "json"))
    logs = team.run("prefect", "flow-run", "logs", running["id"])
    assert re.search(r"Slurm job \d+: RUNNING", logs), logs
    assert "[rank 0] train: " in logs  # what the nodes write
    team.run("prefect", "flow-run", "cancel", running["id"])
    assert result(flow)["name"] == "Cancelled"
    wait_for(lambda: not at_work(team), "end of the stage and its workers")
    assert slurm.run("squeue", "--noheader", "--states=PENDING,RUNNING") == ""
    assert runs(team, STAGE)[0].info.status == "KILLED"
