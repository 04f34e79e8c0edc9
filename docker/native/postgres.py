"""The system's PostgreSQL, set up as Docker's image does it: a cluster, a role, the databases."""

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from native.settings import LOOPBACK, Settings
from tokenbridge.base.errors import UserError

DEBIAN = Path("/usr/lib/postgresql")  # one folder for each major version
UNPRIVILEGED = "postgres"  # Debian's user for it


def search_path() -> str:
    """Return PATH with the folder of PostgreSQL's newest version first.

    Raises:
        UserError: if PostgreSQL is not installed.
    """
    versions = sorted(DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    path = os.pathsep.join([*map(str, versions), os.environ["PATH"]])
    if shutil.which("initdb", path=path) is None:
        raise UserError("PostgreSQL is not installed: sudo apt-get install postgresql, or what your system calls it")
    return path


def account() -> dict[str, Any]:
    """Return the arguments of ``subprocess`` that change root to another user: PostgreSQL refuses to run as root."""
    return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}


def connection(settings: Settings) -> dict[str, str]:
    """Return libpq's variables for the role that owns the databases."""
    return {
        "PGHOST": LOOPBACK,
        "PGPORT": settings["POSTGRES_PORT"],
        "PGUSER": settings["POSTGRES_USER"],
        "PGPASSWORD": settings["POSTGRES_PASSWORD"],
    }


def make_cluster(settings: Settings) -> None:
    """Make the cluster in the stack's folder if there is none.

    Raises:
        UserError: if root's PostgreSQL cannot enter the folder, or initdb fails.
    """
    folder = settings.home / "postgres"
    if folder.exists():
        return
    aside = folder.with_name(folder.name + ".new")  # an interrupted initdb leaves half a cluster
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as password:
        if account():
            shutil.chown(aside, UNPRIVILEGED, UNPRIVILEGED)
            shutil.chown(password.name, UNPRIVILEGED)
        password.write(settings["POSTGRES_PASSWORD"])
        password.flush()
        role = ["--username", settings["POSTGRES_USER"], "--pwfile", password.name]
        words = shlex.split(settings["POSTGRES_INITDB_ARGS"])
        run(settings, "initdb", "--pgdata", str(aside), *role, *words, **account())
    aside.rename(folder)


def run(settings: Settings, *command: str, **more: Any) -> str:
    """Return the output of one of PostgreSQL's programs, which connects as the owner of the databases.

    Raises:
        UserError: with the program's message if it fails.
    """
    environment = {**settings.values, **connection(settings), "PATH": search_path()}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/", **more)
    if ended.returncode:
        other = f" as the user {more['user']}, who must be able to enter {settings.home} (STACK_HOME)" if more else ""
        raise UserError(f"{command[0]} failed{other}: {ended.stderr.strip() or ended.stdout.strip()}")
    return str(ended.stdout)
