"""The local database at the tables of the installed MLflow, with a copy of what it was before."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from functools import cache
from pathlib import Path

from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow.version import VERSION

from tokenbridge.errors import UserError

installed_revision = cache(_get_latest_schema_revision)  # MLflow itself reads its files anew each time: half a second


def upgrade_if_old(database: Path) -> None:
    """Bring a SQLite database that another MLflow made to the installed one's tables.

    A copy stays beside it, named after the revision that it had and the time.

    Raises:
        UserError: if MLflow cannot, as with tables of a newer one; the database is as it was.
    """
    found = revision(database)
    if found in (None, installed_revision()):
        return
    kept = database.with_name(f"{database.name}.{found}.{datetime.now():%Y%m%dT%H%M%S}")
    copy_database(database, kept)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database.resolve().as_posix()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        copy_database(kept, database)
        kept.unlink()
        raise UserError(
            f"{database} has tables of another MLflow than {VERSION}: install the one that made it, or move the file "
            f"aside; it is as it was. `mlflow db upgrade` says: {done.stderr.strip().splitlines()[-1]}"
        )
    print(f"tracking: {database} has the tables of MLflow {VERSION} now; as it was: {kept.name}", file=sys.stderr)


def revision(database: Path) -> str | None:
    """Of the tables, as MLflow's migrations name it; None if MLflow has not made any."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:  # no such table
            return None
        return str(row[0]) if row else None


def copy_database(source: Path, target: Path) -> None:
    """All of a database at one moment, whoever else is at work in it."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
