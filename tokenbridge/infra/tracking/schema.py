"""Upgrade the local database to the tables of the installed MLflow, and keep a copy of the old one."""

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

from mlflow.store.db import utils
from mlflow.version import VERSION

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path

# the name of the tables' revision in MLflow's migrations; it takes a while to find
latest_revision = cache(utils._get_latest_schema_revision)


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


def keep_copy(database: Path, kept: Path) -> None:
    """Copy a database as it is at one moment, even while other processes write to it, unless a copy exists."""
    if not kept.exists():
        with atomic_path(kept) as target, closing(sqlite3.connect(database)) as old:
            old.execute("VACUUM INTO ?", [str(target)])
