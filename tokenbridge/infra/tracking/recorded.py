"""The record in MLflow that rebuilds a pipeline run. ``tokenbridge.ops.runs.pipeline_run`` writes it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenbridge.base.errors import UserError
from tokenbridge.config.params import PARAMS_FILE
from tokenbridge.infra.dvc import LOCK_FILE
from tokenbridge.infra.tracking.pages import public_uri

if TYPE_CHECKING:  # a pipeline run imports no MLflow
    from mlflow.entities import Run

    from tokenbridge.infra.tracking.store import Store

PIPELINE = "pipeline"  # value of the tag `stage` of a pipeline run
PATCH_FILE = "uncommitted.patch"
PACKAGES_FILE = "packages.txt"
LEFT_OUT = "git.left_out"  # tag: new files that are not in the patch
LOCK_DIGEST = "dvc.lock.sha256"
PROCESSOR = "processor"
SOURCE_STATE = "source.state"  # tag: state of the images, from tokenbridge.sources.state


class RecordError(UserError):
    """The run is unknown, or its record is not enough to rebuild it."""


@dataclass(frozen=True)
class RecordedRun:
    """A pipeline run as it was recorded.

    Attributes:
        params, lock: texts of params.yaml and dvc.lock.
        patch: the uncommitted changes to the commit's files.
        packages: name -> version in the environment.
        metrics: ``<stage>/<metric>`` -> value, of the stages that finished.
        left_out: new files that are not in the patch, because they are too large or may hold secrets.
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
    """Return the pipeline run of this id, or the pipeline run that a stage's run of this id belongs to.

    Raises:
        RecordError: if MLflow has no such run, or its record is incomplete.
        StoreError: if MLflow does not answer.
    """
    from tokenbridge.infra.tracking.store import open_store

    with open_store(root) as store:
        run = _pipeline_run(store, run_id)
        files, tags = _files(store, run), run.data.tags
    if missing := {PARAMS_FILE, LOCK_FILE, "git.commit", "git.dirty"} - files.keys() - tags.keys():
        what = ", ".join(sorted(missing))
        raise RecordError(f"run {run.info.run_id} has not recorded {what}: is it still running, or was it cut short?")
    if tags["git.dirty"] == "true" and PATCH_FILE not in files:
        raise RecordError(f"run {run.info.run_id} was made with files that were not committed, nor recorded")
    return RecordedRun(
        run_id=run.info.run_id,
        commit=tags["git.commit"],
        params=files[PARAMS_FILE].decode(),
        lock=files[LOCK_FILE].decode(),
        patch=files.get(PATCH_FILE, b""),
        packages=dict(line.partition("==")[::2] for line in files.get(PACKAGES_FILE, b"").decode().split()),
        processor=tags.get(PROCESSOR, "unknown"),
        metrics={k: v for k, v in run.data.metrics.items() if not k.startswith("system/")},
        left_out=tuple(filter(None, tags.get(LEFT_OUT, "").split(", "))),
    )


def _pipeline_run(store: "Store", run_id: str) -> "Run":
    if store.newest(f"attributes.run_id = '{run_id}'") is None:
        where = public_uri(store.uri)
        raise RecordError(f"{where} has no run {run_id}: take the id of a `{PIPELINE}` row from MLflow's page")
    run = store.client.get_run(run_id)
    if run.data.tags.get("stage") == PIPELINE:
        return run
    parent = run.data.tags.get("mlflow.parentRunId")
    if parent in (None, run_id):  # tags can be edited in MLflow's pages
        raise RecordError(f"run {run_id} is of {run.data.tags.get('stage')}, and belongs to no `{PIPELINE}` run")
    return _pipeline_run(store, parent)


def _files(store: "Store", run: "Run") -> dict[str, bytes]:
    """Return the record's files by name, from the top level of the run's artifacts."""
    client, run_id = store.client, run.info.run_id
    wanted = {PARAMS_FILE, LOCK_FILE, PATCH_FILE, PACKAGES_FILE} & {item.path for item in client.list_artifacts(run_id)}
    with tempfile.TemporaryDirectory() as scratch:
        return {name: Path(client.download_artifacts(run_id, name, scratch)).read_bytes() for name in wanted}
