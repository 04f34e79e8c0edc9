"""The pipeline as a Prefect flow: DVC's stages as tasks, in the order that DVC's own graph gives.

    python -m flows.retrain                          # no server needed
    python -m flows.retrain model=base train.epochs=2    # Hydra overrides

With PREFECT_API_URL set, the run shows up live in that server's pages.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.utilities.annotations import quote

from flows.artifacts import publish_run
from tokenbridge.errors import UserError
from tokenbridge.orchestrate import CACHED, RAN, SKIPPED, PipelineRun, StageFailedError, pipeline_run
from tokenbridge.params import compose_config, load_params
from tokenbridge.stage_graph import read_graph
from tokenbridge.stages.runtime import MISTAKE_CODE

RETRIES = 2
RETRY_SECONDS = 5


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Not what the user must mend first."""
    return re.search(rf"exited with {MISTAKE_CODE}\b", state.message or "") is None


@task(
    task_run_name="{stage}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
)
def run_stage(stage: str, run: PipelineRun) -> State[Any]:
    """Bring one stage up to date with DVC; its state is named after what DVC did."""
    logger = get_run_logger()
    try:
        # --wait-for-lock: dvc holds its lock while it hashes, and another stage may be starting
        run.dvc(["--wait-for-lock", "repro", "--single-item", stage], logger.info)
    except StageFailedError as error:
        return Failed(message=str(error))  # returned: a traceback through our code would hide what the stage says
    outcome = run.outcomes.get(stage, RAN)
    name = {RAN: "Completed", SKIPPED: "Skipped", CACHED: "Cached"}[outcome]
    return Completed(name=name, message=f"{stage}: {outcome}", data=outcome)


@flow(name="retrain", flow_run_name="retrain {overrides}")
def retrain(overrides: Sequence[str] = (), root: str = ".") -> dict[str, str] | State[Any]:
    """Run every stage that changed, under one parent run in MLflow.

    Args:
        overrides: Hydra overrides, such as ["model=base", "train.epochs=2"]; none: params.yaml as it is.
        root: the repository.

    Returns:
        Stage -> ran, skipped or cached; or a failed state that names the stages that did not complete.
    """
    folder = Path(root).resolve()
    try:
        with pipeline_run(folder, overrides) as run:
            _run_stages(folder, run)
    except StageFailedError as error:
        return Failed(message=str(error))
    return run.outcomes


def _run_stages(root: Path, run: PipelineRun) -> None:
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage, needed in read_graph(root).items():
        futures[stage] = run_stage.submit(
            stage=stage,
            run=quote(run),  # quoted: prefect shall not look into it
            return_state=False,
            wait_for=[futures[name] for name in needed],
        )
    for future in futures.values():
        future.wait()
    publish_run(run)
    ended = {stage: future.state for stage, future in futures.items() if future.state.is_final()}
    failed = [stage for stage, state in ended.items() if not state.is_completed()]
    if failed:
        left = [stage for stage in futures if stage not in ended]
        raise StageFailedError(f"{', '.join(failed)} failed, as its log says; not run: {', '.join(left) or 'none'}")


def main(overrides: Sequence[str]) -> None:
    """Run the flow; a mistake in the settings ends with one line, before Prefect starts."""
    try:
        _ = compose_config(overrides) if overrides else load_params()
    except UserError as error:
        sys.exit(f"retrain: {error}")
    state = retrain(overrides, return_state=True)
    if not state.is_completed():
        sys.exit(f"retrain: {state.message}")


if __name__ == "__main__":
    main(sys.argv[1:])
