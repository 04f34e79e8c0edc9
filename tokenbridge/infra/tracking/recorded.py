"""What a pipeline run in MLflow holds, so that it can be rebuilt; ``tokenbridge.ops.runs.pipeline_run`` records it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run

from tokenbridge.base.errors import UserError
from tokenbridge.config.params import PARAMS_FILE
from tokenbridge.infra.dvc import LOCK_FILE
from tokenbridge.infra.tracking.store import Store, connect

PIPELINE = "pipeline"  # the stage that such a run is tagged with
PATCH_FILE = "uncommitted.patch"
PACKAGES_FILE = "packages.txt"
LEFT_OUT = "git.left_out"  # files that are too large for the patch
LOCK_DIGEST = "dvc.lock.sha256"
PROCESSOR = "processor"
SOURCE_STATE = "source.state"  # of the images, as tokenbridge.sources.state tells it


class RecordError(UserError):
    """A run from which nothing can be rebuilt."""


@dataclass(frozen=True)
class RecordedRun:
    """A pipeline run as it was recorded.

    Attributes:
        params, lock: texts of params.yaml and dvc.lock.
        patch: what was changed in the commit's files.
        packages: name -> version of the environment.
        metrics: ``<stage>/<metric>`` of the stages that came to an end.
        left_out: files that git did not know, too large for the patch.
    """

    run_id: str
    commit: str
    params: str
    lock: str
    patch: bytes
    packages: dict[str, str]
    processor: str
    metrics: dict[str, float]
    left_out: tuple[str, ...] = ()


def read_recorded(root: Path, run_id: str) -> RecordedRun:
    """The pipeline run of this id, or the one that the run of a stage belongs to.

    Raises:
        RecordError: if MLflow has none, or not all of it.
    """
    store = connect(root)
    run = _pipeline_run(store, run_id)
    tags = run.data.tags
    files = _files(store, run)
    missing = [name for name in (PARAMS_FILE, LOCK_FILE) if name not in files]
    if missing or "git.commit" not in tags:
        what = ", ".join([*missing, *([] if "git.commit" in tags else ["the git commit"])])
        raise RecordError(f"run {run.info.run_id} has not recorded {what}: is it still at work, or was it cut short?")
    if tags["git.dirty"] == "true" and PATCH_FILE not in files:
        raise RecordError(f"run {run.info.run_id} was made with files that were not committed, nor recorded")
    return RecordedRun(
        run_id=run.info.run_id,
        commit=tags["git.commit"],
        params=files[PARAMS_FILE].decode(),
        lock=files[LOCK_FILE].decode(),
        patch=files.get(PATCH_FILE, b""),
        packages=dict(line.split("==") for line in files.get(PACKAGES_FILE, b"").decode().split()),
        processor=tags.get(PROCESSOR, "unknown"),
        metrics={k: v for k, v in run.data.metrics.items() if not k.startswith("system/")},
        left_out=tuple(filter(None, tags.get(LEFT_OUT, "").split(", "))),
    )


def _pipeline_run(store: Store, run_id: str) -> Run:
    run = store.run(run_id)
    if run is None:
        raise RecordError(f"{store.uri} has no run {run_id}: take the id of a `{PIPELINE}` row from MLflow's page")
    if run.data.tags.get("stage") == PIPELINE:
        return run
    parent = run.data.tags.get("mlflow.parentRunId")
    if parent is None:
        raise RecordError(f"run {run_id} is of {run.data.tags.get('stage')}, and belongs to no `{PIPELINE}` run")
    return _pipeline_run(store, parent)


def _files(store: Store, run: Run) -> dict[str, bytes]:
    """The run's artifacts at the top, by name."""
    names = [item.path for item in store.client.list_artifacts(run.info.run_id) if not item.is_dir]
    wanted = [name for name in names if name in (PARAMS_FILE, LOCK_FILE, PATCH_FILE, PACKAGES_FILE)]
    with tempfile.TemporaryDirectory() as scratch:
        return {
            name: Path(store.client.download_artifacts(run.info.run_id, name, scratch)).read_bytes() for name in wanted
        }
