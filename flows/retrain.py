"""The pipeline as a Prefect flow: DVC's stages as tasks, in the order that DVC's own graph gives.

    python -m flows.retrain                          # no server needed
    python -m flows.retrain model=base train.epochs=2    # Hydra overrides

With PREFECT_API_URL set, the run shows up live in that server's pages.
"""

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.artifacts import link_run, publish_run, titled
from flows.failures import failing_with_its_message
from flows.server import require_server, training_slot, wait_for_server
from tokenbridge.base.at_end import at_end
from tokenbridge.base.program import MISTAKE_CODE, program
from tokenbridge.base.subprocesses import StageFailedError
from tokenbridge.config.params import load_params
from tokenbridge.config.project import find_project
from tokenbridge.infra.dvc import CACHED, RAN, SKIPPED, read_stages
from tokenbridge.ops.runs.freshness import nothing_new, planned_settings
from tokenbridge.ops.runs.pipeline_run import ENDED, PipelineRun, pipeline_run

RETRIES = 2
RETRY_SECONDS = 5
ONE_STAGE_AT_A_TIME: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)  # each uses every core
TRAINING = ("train@", "vae", "classifier")


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return False for mistakes that the user must fix first, and for cancelled runs."""
    return re.search(rf"exited with {MISTAKE_CODE}\b|{ENDED}", state.message or "") is None


@task(
    task_run_name="{stage}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
)
@failing_with_its_message
def run_stage(stage: str, run: PipelineRun, gpu_group: str) -> State[Any]:
    """Bring one stage up to date with DVC; its state is named after what DVC did."""
    with training_slot(gpu_group) if stage.startswith(TRAINING) else nullcontext():
        outcome = run.bring_up_to_date(stage, get_run_logger().info)
    name = {RAN: "Completed", SKIPPED: "Skipped", CACHED: "Cached"}[outcome]
    return Completed(name=name, message=f"{stage}: {outcome}", data=outcome)


@flow(
    name="retrain",
    flow_run_name=titled("overrides"),
    task_runner=ONE_STAGE_AT_A_TIME,  # type: ignore[arg-type]  # its own type says less than it can
)
@failing_with_its_message
def retrain(overrides: Sequence[str] = (), only_if_new: bool = False, root: str = ".") -> dict[str, str] | State[Any]:
    """Run every stage that changed, under one parent run in MLflow. New data in the source is fetched first.

    Args:
        overrides: Hydra overrides, such as ["model=base", "train.epochs=2"]; none: params.yaml as it is.
        only_if_new: end at once if a finished run had the same source, settings and code.
        root: the repository.

    Returns:
        Stage -> ran, skipped or cached; or a state: skipped with the reason, or failed with the stages that did not
        complete.
    """
    folder = find_project(Path(root))
    if only_if_new and (reason := nothing_new(folder, overrides)):
        return Completed(name="Skipped", message=f"nothing new: {reason}")
    with ExitStack() as afterwards, pipeline_run(folder, overrides) as run:
        afterwards.enter_context(at_end(partial(link_run, run)))
        _run_stages(folder, run)
    return run.outcomes


def _run_stages(root: Path, run: PipelineRun) -> None:
    if page := flow_run.ui_url:
        run.tracker.tags({"prefect.page": page})
    run.fetch_if_changed(get_run_logger().info)
    futures: dict[str, PrefectFuture[Any]] = {}
    gpu_group = load_params(root).launcher.gpu_group
    for stage, spec in read_stages(root).items():
        futures[stage] = run_stage.submit(
            stage=stage,
            run=quote(run),  # quoted: prefect should not look into it
            gpu_group=gpu_group,
            return_state=False,
            wait_for=[futures[name] for name in spec.needed],
        )
    for future in futures.values():
        future.wait()
    wait_for_server()
    publish_run(run)
    ended = {stage: future.state for stage, future in futures.items() if future.state.is_final()}
    failed = [stage for stage, state in ended.items() if not state.is_completed()]
    if failed:
        left = [stage for stage in futures if stage not in ended]
        raise StageFailedError(f"{', '.join(failed)} failed, as its log says; not run: {', '.join(left) or 'none'}")


def main(overrides: Sequence[str]) -> None:
    """Run the flow; a mistake in the settings, or a server that is down, ends it with one line."""
    with program("retrain"):
        planned_settings(Path(), overrides)
        require_server()
        state = retrain(overrides, return_state=True)
        if not state.is_completed():
            sys.exit(f"retrain: {state.message}")


if __name__ == "__main__":
    main(sys.argv[1:])
