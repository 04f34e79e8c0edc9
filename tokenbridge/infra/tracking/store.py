"""The MLflow store in use: MLFLOW_TRACKING_URI if set, else a SQLite file and an artifact folder in the project."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path
from tokenbridge.infra.tracking.pages import (
    LOCAL_ADDRESS,
    experiment_tags,
    is_server,
    public_uri,
    run_page,
    runs_page,
)
from tokenbridge.infra.tracking.schema import upgrade_if_old
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER

EXPERIMENT = "tokenbridge"


def say(line: str) -> None:
    print(f"tracking: {line}", file=sys.stderr, flush=True)


def _quiet() -> None:
    """Silence messages of libraries that this package reports itself, in one line."""
    for name in ("mlflow.store.db.utils", "mlflow.pyfunc", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("urllib3.connectionpool", "mlflow.utils.validation"):  # they warn of every attempt and every long text
        logging.getLogger(name).setLevel(logging.ERROR)


class StoreError(UserError):
    """MLflow does not answer, or refuses."""


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

    def newest(self, filter_string: str) -> str | None:
        """Return the id of the newest run that the filter matches, or None."""
        found = self.client.search_runs(
            [self.experiment], filter_string, order_by=["attributes.start_time DESC"], max_results=1
        )
        return str(found[0].info.run_id) if found else None

    def made_by(self, stage: str, key: str) -> str | None:
        """Return the id of the newest FINISHED run of ``stage`` with this key, or None."""
        return self.newest(f"tags.stage = '{stage}' and tags.`stage.key` = '{key}' and attributes.status = 'FINISHED'")


def connect(root: Path) -> Store:
    """Open the store. Create what is missing, and upgrade a local database of an older MLflow.

    Raises:
        Exception: whatever MLflow raises when the store cannot be reached.
    """
    _quiet()
    uri = tracking_uri(root)
    folder = root / SPOOL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "store.lock", timeout=300):
        if uri == default_uri(root):
            create_database(root)
            upgrade_if_old(root / "mlflow.db")
        client = MlflowClient(tracking_uri=uri)
        return Store(client, uri, find_experiment(client, root))


@contextmanager
def open_store(root: Path) -> Iterator[Store]:
    """Open the store.

    Raises:
        StoreError: if MLflow does not answer or refuses, now or in the ``with`` block.
    """
    try:
        yield connect(root)
    except MlflowException as error:
        raise StoreError(
            f"MLflow at {public_uri(tracking_uri(root))} does not answer, or refuses: {str(error).splitlines()[0]}. "
            "Fix that, or set MLFLOW_TRACKING_URI to another store"
        ) from error


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
    """Return the id of our experiment. Create it, or add the tags that it lacks; existing tags stay."""
    if client.get_experiment_by_name(EXPERIMENT) is None:
        ours = client.tracking_uri == default_uri(root)  # a server has its own location of artifacts
        try:
            client.create_experiment(EXPERIMENT, (root / "mlartifacts").resolve().as_uri() if ours else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another machine has just created it
                raise
    found = client.get_experiment_by_name(EXPERIMENT)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key, value in experiment_tags().items():
        if key not in found.tags:
            with suppress(MlflowException):  # someone who may not edit the experiment sees it as it is
                client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def page_of(root: Path, spool: str) -> str | None:
    """Return the address of the run that a spool was replayed into.

    Return None if there is no such run yet, or the store does not answer.
    """
    with suppress(UserError, OSError), open_store(root) as store:
        if run := store.newest(f"tags.spool = '{spool}'"):
            return run_page(store.uri, store.experiment, run)
    return None


def ui_command(root: Path) -> list[str] | None:
    """Return the command that serves the store's pages at ``ui_link``.

    Return None if the store is a server, which serves its pages itself.
    """
    uri = tracking_uri(root)
    if is_server(uri):
        return None
    host, port = LOCAL_ADDRESS
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    artifacts = (root / "mlartifacts").resolve().as_uri()
    return [*command, "--backend-store-uri", uri, "--artifacts-destination", artifacts]


def ui_link(root: Path) -> str:
    """Return the address of our runs in MLflow's pages.

    Raises:
        StoreError: if the server does not answer.
    """
    with open_store(root) as store:
        return runs_page(store.uri, store.experiment)
