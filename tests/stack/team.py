"""What a person does with deployed flows, and finds in the team's MLflow afterwards."""

import json
import subprocess
from typing import Any

from mlflow import MlflowClient

from tests.pipeline.project import Project
from tests.support.patience import PATIENCE

MODEL = "tokenbridge-fashion_mnist-tiny"
GATES = "promotion.min_class_accuracy=0,promotion.min_precision=0,promotion.min_recall=0"  # it is a smoke model
LENIENT = [*GATES.split(","), "promotion.max_slowdown=100", "promotion.resamples=10", "promotion.min_resamples=5"]
State = dict[str, Any]


def start_deployment(
    team: Project, name: str, environment: dict[str, str] | None = None, **parameters: Any
) -> subprocess.Popen[str]:
    """Ask the worker for a run, and wait for its end in a process of its own; ``result`` reads what that says.

    Args:
        environment: of the run, beyond the worker's.
    """
    code = (
        "import json, sys; from prefect.deployments import run_deployment\n"
        "name, settings = sys.argv[1:]\n"
        f"run = run_deployment(name, **json.loads(settings), timeout={PATIENCE}, poll_interval=0.5)\n"
        "print(json.dumps({'id': str(run.id), 'name': run.state.name, 'message': run.state.message}))"
    )
    settings = {"parameters": parameters | {"root": str(team.root)}, "job_variables": {"env": environment or {}}}
    return team.start("python", "-c", code, name, json.dumps(settings))


def result(started: subprocess.Popen[str]) -> State:
    """Name and message of the state in which the run has ended."""
    output, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, output
    return dict(json.loads(output.splitlines()[-1]))


def run_deployment(team: Project, name: str, **parameters: Any) -> State:
    return result(start_deployment(team, name, **parameters))


def client(team: Project) -> MlflowClient:
    return MlflowClient(team.environment["MLFLOW_TRACKING_URI"])


def runs(team: Project, stage: str) -> list[Any]:
    experiment = client(team).get_experiment_by_name("tokenbridge")
    return list(client(team).search_runs([experiment.experiment_id], f"tags.stage = '{stage}'"))
