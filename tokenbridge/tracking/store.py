"""The MLflow store in use: MLFLOW_TRACKING_URI if set, else a SQLite file and an artifact folder in the project."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from tokenbridge.errors import UserError
from tokenbridge.files import atomic_path
from tokenbridge.tracking.schema import upgrade_if_old
from tokenbridge.tracking.spool import SPOOL_FOLDER

EXPERIMENT = "tokenbridge"
UI_ADDRESS = ("127.0.0.1", 5000)
DESCRIPTION = """Every run of the TokenBridge pipeline. A row named **pipeline** is one execution; open it with the
arrow to see its stages.

Columns that matter:

| column | meaning |
|---|---|
| `fd_efficientnet_lite0_...` | distance of generated from real images; lower is better |
| `class_accuracy` | share of generated images that a classifier finds to be of the class asked for |
| `loss` | cross-entropy per dimension in training, in nats |
| tag `stage` | which stage a row is of, such as `train@tiny` |
| tag `stage.key` | digest of the stage's parameters and inputs; equal keys mean equal results |
| tag `reused.<stage>` | on a pipeline row: the stage was up to date, and this run made its outputs |
| tag `git.commit`, `git.dirty` | the code; `dirty` is `true` when files differed from that commit |

Status KILLED means that the process vanished without a word; the next run takes up its work.
"""

# What matters of this is told by us, in one line.
for name in ("mlflow.store.db.utils", "mlflow.pyfunc", "alembic"):
    logging.getLogger(name).setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns at every attempt


def default_uri(root: Path) -> str:
    return f"sqlite:///{(root / 'mlflow.db').resolve().as_posix()}"


def tracking_uri(root: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)


@dataclass(frozen=True)
class Store:
    """An MLflow store that answered, and our experiment in it."""

    client: MlflowClient
    uri: str
    experiment: str  # id

    def run(self, run_id: str) -> Run | None:
        """The run, or None when the store has none of that id."""
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.get_http_status_code() in (400, 404):  # an id of the wrong form is none either
                return None
            raise

    def newest(self, filter_string: str) -> str | None:
        found = self.client.search_runs(
            [self.experiment], filter_string, order_by=["attributes.start_time DESC"], max_results=1
        )
        return str(found[0].info.run_id) if found else None

    def made_by(self, stage: str, key: str) -> str | None:
        return self.newest(f"tags.stage = '{stage}' and tags.`stage.key` = '{key}' and attributes.status = 'FINISHED'")


def connect(root: Path) -> Store:
    """Open the store, creating what is missing and upgrading a local database of an older MLflow.

    Raises:
        Exception: whatever MLflow raises when the store cannot be reached.
    """
    uri = tracking_uri(root)
    with FileLock(lock_path(root), timeout=300):
        if uri == default_uri(root):
            create_database(root)
            upgrade_if_old(root / "mlflow.db")
        client = MlflowClient(tracking_uri=uri)
        return Store(client, uri, find_experiment(client, root))


def lock_path(root: Path) -> Path:
    folder = root / SPOOL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "store.lock"


def create_database(root: Path) -> None:
    """Create the SQLite file aside and whole: one that was interrupted, or made by two processes, stays broken."""
    database = root / "mlflow.db"
    if database.exists():
        return
    with atomic_path(database) as target:
        MlflowClient(tracking_uri=f"sqlite:///{target.resolve().as_posix()}").search_experiments(max_results=1)


def find_experiment(client: MlflowClient, root: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        folder = (root / "mlartifacts").resolve().as_uri()
        ours = client.tracking_uri == default_uri(root)
        try:
            return str(
                client.create_experiment(
                    EXPERIMENT,
                    artifact_location=folder if ours else None,  # a server knows its own
                    tags={"mlflow.note.content": DESCRIPTION},
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was faster
                raise
            found = client.get_experiment_by_name(EXPERIMENT)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def find_run(root: Path, stage: str, key: str) -> str | None:
    """Id of the newest FINISHED run of ``stage`` with this key; None if there is none or nobody to ask."""
    try:
        return connect(root).made_by(stage, key)
    except (MlflowException, OSError, UserError):
        return None


def ui_command(root: Path) -> list[str]:
    """Command that serves the local store in a browser, at ``ui_link``.

    Raises:
        ValueError: when MLFLOW_TRACKING_URI names a server, which has a page of its own.
    """
    uri = tracking_uri(root)
    if uri.startswith("http"):
        raise UserError(f"MLFLOW_TRACKING_URI is {uri}: open that address in a browser, it shows the runs")
    connect(root)
    host, port = UI_ADDRESS
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    artifacts = (root / "mlartifacts").resolve().as_uri()
    return [*command, "--backend-store-uri", uri, "--artifacts-destination", artifacts]


def ui_link(root: Path) -> str:
    """Address of our runs in the page that ``ui_command`` serves."""
    host, port = UI_ADDRESS
    # without its workflowType the page opens on tools for chat models
    return f"http://{host}:{port}/#/experiments/{connect(root).experiment}/runs?workflowType=machine_learning"
