"""The local database at the tables of the installed MLflow, with a copy of what it was before."""

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
    """Of the installed MLflow's tables, the newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_get_alembic_config("")).walk_revisions()]


def upgrade_if_old(database: Path) -> None:
    """Bring a SQLite database that another MLflow made to the installed one's tables.

    A copy stays beside it, named after the revision that it had and the time.

    Raises:
        UserError: if it is of a newer MLflow, or the upgrade fails; the database is as it was.
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
