"""The pipeline once for each combination of a sweep, as a Prefect flow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.artifacts import titled
from flows.failures import failing_with_its_message
from flows.server import training_slot
from tokenbridge.base.files import read_json
from tokenbridge.config.overrides import expand_sweep
from tokenbridge.config.params import compose_config, validate
from tokenbridge.config.project import find_project
from tokenbridge.ops.runs.pipeline_run import only_user, run_in_worktree

WORKTREE = Path(".work/backfill")
REPORTS = Path("reports/evaluate")


@task(task_run_name="{label}", cache_policy=NO_CACHE)
@failing_with_its_message
def run_combination(label: str, overrides: Sequence[str], root: Path, gpu_group: str) -> State[Any]:
    """One pipeline; its state holds the metrics of every model, as ``<model>/<metric>``, but not their protocol."""
    with training_slot(gpu_group), only_user(root, WORKTREE):
        worktree = run_in_worktree(root, WORKTREE, overrides, get_run_logger().info)
        reports = {path.stem: read_json(path) for path in sorted((worktree / REPORTS).glob("*.json"))}
    figures = [(f"{model}/{name}", v) for model, report in reports.items() for name, v in report.items()]
    return Completed(data={name: value for name, value in figures if not isinstance(value, dict)})


@flow(name="backfill", flow_run_name=titled("sweep"))
@failing_with_its_message
def backfill(sweep: Sequence[str], root: str = ".") -> State[Any]:
    """Run the pipeline for every combination, one after the other, in a worktree of the last commit.

    What several combinations share is computed once, as DVC's cache has it. A combination that fails does not stop
    the others.

    Args:
        sweep: Hydra overrides, some with several values, such as ["train.seed=0,1", "generate.guidance_scale=1,2,3"].
        root: the repository.
    """
    folder = find_project(Path(root))
    combinations = expand_sweep(sweep)
    # all of them, before the first one starts
    configs = [validate(compose_config(combination, folder / "conf")) for combination in combinations]
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for combination, config in zip(combinations, configs, strict=True):
        label = " ".join(combination) or "as configured"
        state = run_combination(label, combination, folder, config.launcher.gpu_group, return_state=True)
        metrics = cast(dict[str, Any], state.result()) if state.is_completed() else {}
        failed += [] if state.is_completed() else [label]
        rows.append({"overrides": label, "state": state.name, **metrics})
    create_table_artifact(key="backfill", table=rows, description="Metrics of each combination")
    if failed:
        return Failed(message=f"{len(failed)} of {len(combinations)} combinations failed: {'; '.join(failed)}")
    return Completed(message=f"{len(combinations)} combinations")
