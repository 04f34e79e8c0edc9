"""The MLflow store in use, and queries to it. The default is a SQLite file and an artifact folder in the project."""

import logging
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path, check_access
from tokenbridge.infra.tracking import say
from tokenbridge.infra.tracking.pages import (
    LOCAL_ADDRESS,
    experiment_tags,
    is_server,
    public_uri,
    run_page,
    runs_page,
)
from tokenbridge.infra.tracking.schema import follow_project, set_damaged_aside, upgrade_if_old
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER
from tokenbridge.infra.tracking.uri import SQLITE, default_uri, tracking_uri

EXPERIMENT = "tokenbridge"
FAILURES = (MlflowException, SQLAlchemyError, sqlite3.Error, Timeout)
NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code for what was deleted
ARTIFACTS = "mlartifacts"  # the folder beside a SQLite file


def _quiet() -> None:
    """Silence messages of libraries that this package reports itself, in one line."""
    for name in ("mlflow.store.db.utils", "mlflow.pyfunc", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("urllib3.connectionpool", "mlflow.utils.validation"):  # they warn of every attempt and every long text
        logging.getLogger(name).setLevel(logging.ERROR)


class StoreError(UserError):
    """MLflow does not answer, or refuses."""


def artifacts_of(uri: str) -> str | None:
    """Return where the artifacts of a store lie, or None if the store decides that."""
    return (Path(uri.removeprefix(SQLITE)).parent / ARTIFACTS).resolve().as_uri() if uri.startswith(SQLITE) else None


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
    """Open the store. Create what is missing, upgrade a local database of an older MLflow, and replace a damaged one.

    Raises:
        Exception: whatever MLflow raises when the store cannot be reached.
    """
    _quiet()
    (root / SPOOL_FOLDER).mkdir(parents=True, exist_ok=True)
    with _opening(root):
        try:
            return _open(root)
        except FAILURES:
            if tracking_uri(root) != default_uri(root):
                raise
            _replaced(root)  # by this process now, or by another one before
            return _open(root)


def replace_damaged(root: Path) -> bool:
    """Set the local database aside if it is damaged, and say so. Return whether it was."""
    with _opening(root):
        return _replaced(root)


def _opening(root: Path) -> FileLock:
    return FileLock(root / SPOOL_FOLDER / "store.lock", timeout=300)


def _replaced(root: Path) -> bool:
    aside = set_damaged_aside(root / "mlflow.db") if tracking_uri(root) == default_uri(root) else None
    if aside:
        say(f"mlflow.db was damaged: it is called {aside.name} now, with the earlier runs, and a new one replaces it")
    return aside is not None


def _open(root: Path) -> Store:
    uri = tracking_uri(root)
    if uri == default_uri(root):
        check_access(root / "mlflow.db", root / ARTIFACTS)
        create_database(root)
        upgrade_if_old(root / "mlflow.db")
        follow_project(root / "mlflow.db", root / ARTIFACTS, EXPERIMENT)
    client = MlflowClient(tracking_uri=uri)
    return Store(client, uri, find_experiment(client))


@contextmanager
def open_store(root: Path) -> Iterator[Store]:
    """Open the store.

    Raises:
        StoreError: if MLflow does not answer or refuses, now or in the ``with`` block.
    """
    try:
        yield connect(root)
    except FAILURES as error:
        where, what = f"MLflow at {public_uri(tracking_uri(root))}", public_uri(str(error).splitlines()[0])
        if isinstance(error, MlflowException) and error.error_code == NOT_FOUND:
            raise StoreError(f"{where} lacks what was deleted meanwhile: {what}. Restore it, or repeat") from error
        raise StoreError(
            f"{where} does not answer, or refuses: {what}. Fix that, or set MLFLOW_TRACKING_URI to another store"
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


def find_experiment(client: MlflowClient) -> str:
    """Return the id of our experiment. Create it, or add the tags that it lacks; existing tags stay."""
    if client.get_experiment_by_name(EXPERIMENT) is None:
        try:
            client.create_experiment(EXPERIMENT, artifacts_of(client.tracking_uri))
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
    artifacts = artifacts_of(uri) or (root / ARTIFACTS).resolve().as_uri()
    return [*command, "--backend-store-uri", uri, "--artifacts-destination", artifacts]


def ui_link(root: Path) -> str:
    """Return the address of our runs in MLflow's pages.

    Raises:
        StoreError: if the server does not answer.
    """
    with open_store(root) as store:
        return runs_page(store.uri, store.experiment)
