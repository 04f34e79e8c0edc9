"""Keep the local database usable: of the installed MLflow's tables, set aside if damaged, and right after a move."""

import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from mlflow.store.db import utils
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as SqlAlchemyRegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.version import VERSION

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path

LOCATIONS = (  # table and column
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
)
# the name of the tables' revision in MLflow's migrations; it takes a while to find
latest_revision = cache(utils._get_latest_schema_revision)
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PARTS = ("", "-journal", "-wal", "-shm")  # SQLite's files of one database: a left journal would spoil the next one


def upgrade_if_old(database: Path) -> None:
    """Upgrade a SQLite database that an older MLflow made to the installed MLflow's tables.

    A copy of the old database stays beside it, named after the old revision.

    Raises:
        UserError: if a newer MLflow made the database, which then stays as it was, or if the upgrade fails.
    """
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{database.resolve().as_posix()}")
    found = utils._get_schema_version(engine)  # None if MLflow has made no tables yet
    kept = database.with_name(f"{database.name}.{found}")
    try:
        if found not in (None, latest_revision()):
            keep_copy(database, kept)
            utils._upgrade_db(engine)
    except Exception as error:
        raise UserError(
            f"{database} was made by another MLflow than {VERSION} and cannot be upgraded: {error}. "
            f"{kept.name} is a copy from before: use it with the MLflow that made it, or move {database.name} aside"
        ) from error
    finally:
        engine.dispose()


def set_damaged_aside(database: Path) -> Path | None:
    """Rename a SQLite database if it is damaged, so that a new one can take its place. Return its new path, or None.

    The connections of this process are closed first: they may be to a file that another process has renamed.
    """
    uri = f"sqlite:///{database.resolve().as_posix()}"
    for kind in (SqlAlchemyStore, SqlAlchemyRegistryStore):
        if engine := kind._engine_map.get(uri):
            engine.dispose()
    if not database.is_file() or not _is_damaged(database):
        return None
    aside = database.with_name(f"{database.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    for part in PARTS:
        with suppress(FileNotFoundError):
            database.with_name(f"{database.name}{part}").rename(aside.with_name(f"{aside.name}{part}"))
    return aside


def _is_damaged(database: Path) -> bool:
    try:
        with closing(sqlite3.connect(database)) as opened:
            found: str = opened.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:  # other errors, such as a locked database, say nothing about its content
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGE
    return found != "ok"


def follow_project(database: Path, artifacts: Path, experiment: str) -> None:
    """Correct the locations of an experiment's artifacts, which MLflow keeps absolute, after a move of the project.

    Locations that do not end with the name of ``artifacts`` stay: somebody has chosen them.
    """
    here = artifacts.resolve().as_uri()
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", [experiment]).fetchone()
        if found is None or found[0] == here or Path(found[0]).name != artifacts.name:
            return
        for table, column in LOCATIONS:
            changed = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
            connection.execute(changed, [here, len(found[0]) + 1, len(found[0]), found[0]])


def keep_copy(database: Path, kept: Path) -> None:
    """Copy a database as it is at one moment, even while other processes write to it, unless a copy exists."""
    if not kept.exists():
        with atomic_path(kept) as target, closing(sqlite3.connect(database)) as old:
            old.execute("VACUUM INTO ?", [str(target)])
