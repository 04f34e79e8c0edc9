"""What the tests of the team's flows and of their pages share."""

import json
from typing import Any

from tests.pipeline.project import Project

MODEL = "tokenbridge-fashion_mnist-tiny"
GATES = "promotion.min_class_accuracy=0,promotion.min_precision=0,promotion.min_recall=0"  # it is a smoke model
LENIENT = [*GATES.split(","), "promotion.max_slowdown=100", "promotion.resamples=10", "promotion.min_resamples=5"]
State = dict[str, Any]


def run_deployment(team: Project, name: str, **parameters: Any) -> State:
    """A run by the worker, to its end: id, and name and message of its state."""
    code = (
        "import json, sys; from prefect.deployments import run_deployment\n"
        "run = run_deployment(sys.argv[1], parameters=json.loads(sys.argv[2]), timeout=600, poll_interval=0.5)\n"
        "print(json.dumps({'id': str(run.id), 'name': run.state.name, 'message': run.state.message}))"
    )
    output = team.run("python", "-c", code, name, json.dumps(parameters | {"root": str(team.root)}))
    return dict(json.loads(output.splitlines()[-1]))
