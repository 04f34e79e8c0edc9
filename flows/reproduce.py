"""Rebuild a run from its id, as a Prefect flow."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.failures import failing_with_its_message
from flows.server import training_slot
from tokenbridge.config.params import load_params
from tokenbridge.config.project import find_project
from tokenbridge.ops.runs.reproduction import report, reproduce_run


@flow(name="reproduce", flow_run_name="reproduce {run_id}")
@failing_with_its_message
def reproduce(run_id: str, recompute: bool = False, trust: bool = False, root: str = ".") -> State[Any]:
    """Restore a run of MLflow in a worktree, or compute it again and compare.

    Args:
        run_id: of a `pipeline` run, or of a stage in it.
        recompute: run every stage again instead of restoring what it gave.
        trust: let ``recompute`` execute the run's uncommitted changes.
        root: the repository.

    Returns:
        A failed state if the result is another than the run's; the artifact `reproduction` lists the differences.
    """
    folder = find_project(Path(root))
    with training_slot(load_params(folder).launcher.gpu_group) if recompute else nullcontext():
        result = reproduce_run(folder, run_id, recompute, trust=trust, on_line=get_run_logger().info)
    text = report(result)
    create_markdown_artifact(key="reproduction", markdown=text, description=f"Run {run_id} rebuilt")
    verdict = text.splitlines()[0]
    return Completed(message=verdict) if result.equal else Failed(message=verdict)
