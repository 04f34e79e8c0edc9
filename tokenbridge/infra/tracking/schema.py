"""Upgrade the local database to the tables of the installed MLflow, and keep a copy of the old one."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from functools import cache
from pathlib import Path

from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
from mlflow.version import VERSION

from tokenbridge.base.errors import UserError


@cache
def known_revisions() -> list[str]:
    """Return the revisions of the tables that the installed MLflow knows, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_get_alembic_config("")).walk_revisions()]


def upgrade_if_old(database: Path) -> None:
    """Upgrade a SQLite database that an older MLflow made to the installed MLflow's tables.

    A copy of the old database stays beside it, named after the old revision and the time.

    Raises:
        UserError: if a newer MLflow made the database, or the upgrade fails. The database then stays as it was.
    """
    found = revision(database)
    if found in (None, known_revisions()[0]):
        return
    if found not in known_revisions():
        raise UserError(
            f"{database} was made by a newer MLflow than {VERSION}: install that one, or move the file aside"
        )
    kept = database.with_name(f"{database.name}.{found}.{datetime.now():%Y%m%dT%H%M%S}")
    copy_database(database, kept)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database.resolve().as_posix()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        copy_database(kept, database)
        kept.unlink()
        raise UserError(
            f"{database} was made by an older MLflow than {VERSION}, and is as it was, since `mlflow db upgrade` "
            f"failed: {done.stderr.strip().splitlines()[-1]}"
        )
    print(f"tracking: {database} has the tables of MLflow {VERSION} now; as it was: {kept.name}", file=sys.stderr)


def revision(database: Path) -> str | None:
    """Return the revision of the tables, as MLflow's migrations name it, or None if MLflow has made no tables."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:  # no such table
            return None
        return str(row[0]) if row else None


def copy_database(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment, even while other processes write to it."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
