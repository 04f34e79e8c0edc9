"""PostgreSQL of the system, set up as compose.yaml's image sets itself up: a cluster, a role, the databases."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from native.settings import DOCKER, LOOPBACK
from tokenbridge.base.errors import UserError

SERVICE = "postgres"
DEBIAN = Path("/usr/lib/postgresql")  # one folder for each major version
UNPRIVILEGED = "postgres"  # Debian's user for it
PROGRAMS = ("postgres", "initdb", "psql", "createdb", "pg_isready", "pg_dump", "pg_restore")


@cache
def program_folder() -> Path:
    """The folder with PostgreSQL's programs, of the newest version that is there.

    Raises:
        UserError: when it is not installed.
    """
    versions = sorted(DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    for folder in [*versions, *map(Path, os.environ["PATH"].split(os.pathsep))]:
        if all((folder / name).exists() for name in PROGRAMS):
            return folder
    raise UserError("PostgreSQL is not installed: sudo apt-get install postgresql, or what your system calls it")


def account() -> dict[str, Any]:
    """Popen's arguments that make root somebody else: PostgreSQL refuses to run as root."""
    return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}


def connection(environment: Mapping[str, str]) -> dict[str, str]:
    """libpq's variables for the role that the service's ``environment`` sets up."""
    return {
        "PGHOST": LOOPBACK,
        "PGPORT": environment["PGPORT"],
        "PGUSER": environment["POSTGRES_USER"],
        "PGPASSWORD": environment["POSTGRES_PASSWORD"],
    }


def make_cluster(environment: Mapping[str, str]) -> None:
    """Make the cluster in PGDATA if there is none.

    Raises:
        UserError: when another version made what is there, or root's PostgreSQL cannot reach the place.
    """
    folder = Path(environment["PGDATA"])
    if folder.exists():
        require_version(folder)
        return
    aside = folder.with_name(folder.name + ".new")  # an interrupted initdb leaves half a cluster
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as password:
        if account():
            shutil.chown(aside, UNPRIVILEGED, UNPRIVILEGED)
            shutil.chown(password.name, UNPRIVILEGED)
            require_reachable(aside)
        password.write(environment["POSTGRES_PASSWORD"])
        password.flush()
        words = shlex.split(environment["POSTGRES_INITDB_ARGS"])
        who = ["--username", environment["POSTGRES_USER"], "--pwfile", password.name]
        run(["initdb", "--pgdata", str(aside), *who, *words], environment, **account())
    aside.rename(folder)


def require_version(folder: Path) -> None:
    made = (folder / "PG_VERSION").read_text().strip()
    found = run(["postgres", "--version"], os.environ).split()[2].split(".")[0]
    if made != found:
        raise UserError(
            f"{folder} was made by PostgreSQL {made}, and {found} is installed: install {made} again, "
            f"back up (docs/stack.md), wipe, and restore under {found}"
        )


def require_reachable(folder: Path) -> None:
    """The user that root becomes must be able to enter every folder above."""
    if subprocess.run(["test", "-w", folder], check=False, **account()).returncode:
        raise UserError(
            f"the user {UNPRIVILEGED}, whom root's PostgreSQL runs as, cannot enter {folder.parent}: "
            "set STACK_HOME to a folder that every user can enter, such as /srv/tokenbridge, or do not be root"
        )


def make_databases(environment: Mapping[str, str]) -> None:
    """Create the databases that are missing, by the script that the image runs too."""
    run(["sh", str(DOCKER / "databases.sh")], {**environment, **connection(environment)})


def run(command: list[str], environment: Mapping[str, str], **more: Any) -> str:
    """Output of one of PostgreSQL's programs.

    Raises:
        UserError: with its last words when it fails.
    """
    path = os.pathsep.join([str(program_folder()), os.environ["PATH"]])
    ended = subprocess.run(
        command, env={**environment, "PATH": path}, capture_output=True, text=True, check=False, cwd="/", **more
    )
    if ended.returncode:
        raise UserError(f"{command[0]} failed: {ended.stderr.strip() or ended.stdout.strip()}")
    return str(ended.stdout)
