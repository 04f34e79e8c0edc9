"""The MLflow store in use: MLFLOW_TRACKING_URI if set, else a SQLite file and an artifact folder in the project."""

import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path
from tokenbridge.infra.tracking.pages import LOCAL_ADDRESS, address, experiment_tags, is_server, run_page, runs_page
from tokenbridge.infra.tracking.schema import upgrade_if_old
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER

EXPERIMENT = "tokenbridge"

# We report what matters of these messages ourselves, in one line.
for name in ("mlflow.store.db.utils", "mlflow.pyfunc", "alembic"):
    logging.getLogger(name).setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns on every attempt


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
        """Return the run, or None if the store has no run of that id."""
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.get_http_status_code() in (400, 404):  # 400: the id has the wrong form
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
    """Open the store. Create what is missing, and upgrade a local database of an older MLflow.

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
    """Create the SQLite file aside, and move it into place when it is complete.

    A file would stay broken if its creation was interrupted, or if two processes created it together.
    """
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
                    artifact_location=folder if ours else None,  # a server has its own location
                    tags=experiment_tags(),
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another machine has just created it
                raise
            found = client.get_experiment_by_name(EXPERIMENT)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    _complete(client, found)
    return str(found.experiment_id)


def _complete(client: MlflowClient, experiment: Experiment) -> None:
    """Add the tags that an experiment of an earlier version, or of someone else, lacks. Existing tags stay."""
    for key, value in experiment_tags().items():
        if key not in experiment.tags:
            with suppress(MlflowException):  # someone who may not edit the experiment sees it as it is
                client.set_experiment_tag(experiment.experiment_id, key, value)


def find_run(root: Path, stage: str, key: str) -> str | None:
    """Return the id of the newest FINISHED run of ``stage`` with this key.

    Return None if there is no such run, or the store does not answer.
    """
    try:
        return connect(root).made_by(stage, key)
    except (MlflowException, OSError, UserError):
        return None


def page_of(root: Path, spool: str) -> str | None:
    """Return the address of the run that a spool was replayed into.

    Return None if there is no such run yet, or the store does not answer.
    """
    try:
        store = connect(root)
        run = store.newest(f"tags.spool = '{spool}'")
    except (MlflowException, OSError, UserError):
        return None
    return run_page(store.uri, store.experiment, run) if run else None


def ui_command(root: Path) -> list[str] | None:
    """Return the command that serves the store's pages at ``ui_link``.

    Return None if the store is a server, which serves its pages itself.
    """
    uri = tracking_uri(root)
    if is_server(uri):
        return None
    connect(root)
    host, port = LOCAL_ADDRESS
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    artifacts = (root / "mlartifacts").resolve().as_uri()
    return [*command, "--backend-store-uri", uri, "--artifacts-destination", artifacts]


def ui_link(root: Path) -> str:
    """Return the address of our runs in MLflow's pages.

    Raises:
        UserError: if the server does not answer.
    """
    try:
        store = connect(root)
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"MLflow at {address(tracking_uri(root))} does not answer, or refuses: {reason}") from error
    return runs_page(store.uri, store.experiment)
