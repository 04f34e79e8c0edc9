"""What an ML engineer does with the team's stack: deploy the flows, schedule, watch, promote, go back."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import Environment

from flows.alerts import MESSAGE, VANISHED
from tests.pipeline.project import Project, wait_for
from tests.stack.conftest import Stack
from tests.stack.team import LENIENT, MODEL, State, client, result, run_deployment, runs, start_deployment
from tokenbridge.base.files import read_json, sha256_tree

pytestmark = pytest.mark.cluster

SILENCE = 60  # seconds; twice a living flow's heartbeat


def champion(team: Project) -> int:
    return int(client(team).get_model_version_by_alias(MODEL, "champion").version)


Posted = list[dict[str, Any]]


@pytest.fixture(scope="module")
def hook() -> Iterator[tuple[str, Posted]]:
    """Address of a local webhook, and what was posted to it."""
    posted: Posted = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/alerts", posted
    server.shutdown()


@pytest.fixture(scope="module")
def alerts(team: Project, hook: tuple[str, Posted]) -> Iterator[Posted]:
    """What was posted to the webhook. A flow of this machine was killed before."""
    url, posted = hook
    team.environment = team.environment | {"TOKENBRIDGE_ALERT_URL": url}
    for _ in range(2):  # again: in place of what is there
        team.run("python", "-m", "flows.alerts", "--silence", str(SILENCE))
    flow = team.start("python", "-m", "flows.retrain", *team.overrides)
    assert flow.stdout is not None
    wait_for(lambda: "Stage '" in flow.stdout.readline(), "stage")  # by now a heartbeat was sent
    os.killpg(flow.pid, signal.SIGKILL)
    yield posted
    team.run("python", "-m", "flows.alerts")  # with its own patience again


def test_every_flow_is_deployed_and_the_schedule_waits_for_a_person(team: Project) -> None:
    listed = json.loads(team.run("prefect", "deployment", "ls", "--output", "json"))
    assert {f"{entry['name']}" for entry in listed} >= {
        "retrain", "evaluate", "promote", "rollback", "reproduce", "backfill",
    }  # fmt: skip
    retrain = json.loads(team.run("prefect", "deployment", "inspect", "retrain/retrain", "--output", "json"))
    (schedule,) = retrain["schedules"]
    assert (schedule["schedule"]["cron"], schedule["active"]) == ("0 3 * * *", False)
    assert retrain["global_concurrency_limit"]["limit"] == 1


def test_a_deployed_retrain_fills_mlflow_and_the_registry(team: Project, retrained: State) -> None:
    assert retrained["name"] == "Completed", retrained
    (pipeline,) = runs(team, "pipeline")
    assert pipeline.info.status == "FINISHED"
    version = client(team).get_model_version(MODEL, "1")
    assert version.tags["git.commit"] == pipeline.data.tags["git.commit"]
    assert "samples/tiny.png" in [a.path for a in client(team).list_artifacts(pipeline.info.run_id, "samples")]
    limit = json.loads(team.run("prefect", "gcl", "inspect", "tokenbridge-local", "--output", "json"))
    assert limit["limit"] == 1


@pytest.mark.usefixtures("retrained")
def test_nothing_new_is_skipped_with_the_reason(team: Project) -> None:
    state = run_deployment(team, "retrain/retrain", overrides=list(team.overrides), only_if_new=True)
    assert state["name"] == "Skipped"
    assert "had the same source, settings and code" in state["message"]
    assert len(runs(team, "pipeline")) == 1


@pytest.mark.usefixtures("retrained")
def test_a_run_is_rebuilt_from_its_id(team: Project) -> None:
    (pipeline,) = runs(team, "pipeline")
    state = run_deployment(team, "reproduce/reproduce", run_id=pipeline.info.run_id)
    assert state["name"] == "Completed", state
    assert state["message"].endswith("the same bits.")


def test_a_failure_is_posted_to_a_webhook(team: Project, alerts: Posted) -> None:
    state = run_deployment(team, "reproduce/reproduce", run_id="0" * 32)
    assert state["name"] == "Failed"
    (alert,) = wait_for(lambda: [each for each in alerts if each["flow"] == "reproduce"], "alert")
    assert alert["state"] == "Failed"
    assert "has no run 0000" in alert["message"]


@pytest.mark.usefixtures("retrained")
def test_another_clone_pulls_the_data_and_reproduces_a_run_without_computing(
    stack: Stack, team: Project, tmp_path: Path
) -> None:
    """As on another machine: with client.env sourced, git's commits, and an empty cache."""
    recorded = next(run for run in runs(team, "pipeline") if run.info.status == "FINISHED")
    bucket = ("python", "-m", "tokenbridge.cli", "remote", f"storage.bucket={stack.settings()['DVC_BUCKET']}")
    team.run(*bucket)
    team.run("dvc", "push", "--run-cache")

    clone = Project(tmp_path / "clone")
    team.run("git", "clone", "--quiet", ".", str(clone.root))
    clone.environment |= {**team.environment, "PYTHONPATH": str(clone.root)}
    clone.run(*bucket)
    output = clone.run("python", "-m", "tokenbridge.cli", "reproduce", recorded.info.run_id)
    assert "pulling the rest from the remote" in output
    assert "the same bits" in output
    assert "Running stage" not in output
    rebuilt = clone.root / ".work/reproduce" / recorded.info.run_id
    assert sha256_tree(rebuilt / "models/tiny") == team.digest("models/tiny")
    report = read_json(rebuilt / "reports/evaluate/tiny.json")
    for name, value in ((name, value) for name, value in report.items() if isinstance(value, int | float)):
        assert recorded.data.metrics[f"evaluate_tiny/{name}"] == value


def test_a_killed_flow_is_marked_as_crashed_and_posted(alerts: Posted) -> None:
    (alert,) = wait_for(lambda: [each for each in alerts if each["flow"] == "retrain"], "alert")
    assert (alert["state"], alert["message"]) == ("Crashed", VANISHED)


def test_an_alert_is_json_whatever_a_run_is_called() -> None:
    """A run's name holds its overrides, and a failed state's name and message may hold anything."""
    name = 'retrain data.root="s3://data/train-*.tar" a=b\\c'
    environment = Environment()
    environment.filters["ui_url"] = lambda run: f"http://prefect/{run.id}"
    state = SimpleNamespace(name='"Failed"', message="line 1\nline 2")
    run = SimpleNamespace(name=name, id=7, state=state)
    rendered = environment.from_string(MESSAGE).render(flow=SimpleNamespace(name="retrain"), flow_run=run)
    message = {"message": state.message, "page": "http://prefect/7"}
    assert json.loads(rendered) == {"flow": "retrain", "run": name, "state": state.name} | message


def test_a_model_is_promoted(team: Project, promoted: State) -> None:
    assert (promoted["name"], champion(team)) == ("Promoted", 1), promoted


def test_another_is_refused_promoted_and_rolled_back(team: Project, retrained_again: State) -> None:
    assert retrained_again["name"] == "Completed", retrained_again
    refusal = run_deployment(team, "promote/promote", model="tiny", changes=[*LENIENT, "promotion.max_fd_increase=-99"])
    assert refusal["name"] == "Refused"
    assert champion(team) == 1
    accepted = run_deployment(team, "promote/promote", model="tiny", changes=[*LENIENT, "promotion.max_fd_increase=99"])
    assert accepted["name"] == "Promoted", accepted
    assert champion(team) == 2
    assert run_deployment(team, "rollback/rollback", model="tiny")["name"] == "Completed"
    assert champion(team) == 1


def test_any_version_is_evaluated_with_other_settings(team: Project) -> None:
    state = run_deployment(team, "evaluate/evaluate", model="tiny", version=1, changes=["generate.steps=2"])
    assert state["name"] == "Completed", state
    (run,) = runs(team, "evaluation")
    assert run.data.params["generate.steps"] == "2"
    assert "class_accuracy" in run.data.metrics
    about = {name for name in run.data.params if name.startswith("protocol.")}
    named = {"images", "fewest_of_a_class", "crop", "seed", "batch_size", "precision", "classifier"}
    assert {f"protocol.{name}" for name in (*named, "references.validation.digest")} <= about


def test_a_sweep_runs_every_combination(team: Project) -> None:
    sweep = [*team.overrides, "evaluate.kid_subsets=3,4"]
    flow = start_deployment(team, "backfill/backfill", sweep=sweep)
    limit = ("prefect", "gcl", "inspect", "tokenbridge-local", "--output", "json")
    wait_for(lambda: json.loads(team.run(*limit))["active_slots"], "slot that is taken, so that no other flow trains")
    state = result(flow)
    assert (state["name"], state["message"]) == ("Completed", "2 combinations"), state
