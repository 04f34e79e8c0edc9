"""Programs of the system that tests need: what for, and which package of Debian has them.

``make system`` installs the missing ones where it may: as root, with apt-get. A test whose program is missing all the
same is skipped, and the end of the run tells what was not tested; in CI it fails.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

RIGHTS = "this user may not mount file systems and make networks: root may"


@dataclass(frozen=True)
class Program:
    """Attributes: purpose: what is tested with it, in the words of a headline."""

    name: str
    package: str
    purpose: str

    @property
    def path(self) -> str | None:
        return shutil.which(self.name, path=search_path())

    @property
    def missing(self) -> str:
        return f"{self.name} is not installed: apt-get install {self.package}, or what your system calls it"


PROGRAMS = (
    Program("initdb", "postgresql", "the team's servers"),
    Program("chromium", "chromium", "the pages of MLflow and Prefect"),
    Program("slurmctld", "slurm-wlm", "jobs on Slurm"),
    Program("ip", "iproute2", "jobs on Slurm, in its own network"),
)


def search_path() -> str:
    """PATH, and the folders beside it where Debian puts programs."""
    folders = os.environ["PATH"].split(os.pathsep)
    beside = ["/usr/sbin", "/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    return os.pathsep.join([*folders, *(folder for folder in beside if folder not in folders)])


def require(name: str) -> Path:
    """Where the program is; without it, the test that asks ends here."""
    (program,) = (program for program in PROGRAMS if program.name == name)
    return Path(program.path) if program.path else leave_out(program.missing)


def require_rights() -> None:
    """To mount file systems and to make networks; without them, the test that asks ends here."""
    if not has_rights():
        leave_out(RIGHTS)


@cache
def has_rights() -> bool:
    """Root of a container may lack them."""
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "--mount", "--net", "true"], check=False).returncode == 0


def in_ci() -> bool:
    return os.environ.get("CI") == "true"


def leave_out(reason: str) -> NoReturn:
    if in_ci():
        pytest.fail(f"{reason}. In CI nothing is skipped.", pytrace=False)
    pytest.skip(reason)


def pytest_configure() -> None:
    os.environ["PATH"] = search_path()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was not tested, and why."""
    purposes = {program.missing: program.purpose for program in PROGRAMS} | {RIGHTS: "full disks, and jobs on Slurm"}
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    counts = {reason: sum(reason in text for text in skipped) for reason in purposes}
    if any(counts.values()):
        terminalreporter.section("not tested")
    for reason, count in counts.items():
        if count:
            terminalreporter.write_line(f"{purposes[reason]} ({count} skipped): {reason}")


def install() -> None:
    """Install what is missing, where that is allowed, and name what stays missing; in CI that is an error."""
    missing = [program for program in PROGRAMS if program.path is None]
    if missing and shutil.which("apt-get") and os.geteuid() == 0:
        apt_get("update")
        for program in missing:  # one by one, because not every system has them all
            apt_get("install", "--yes", "--no-install-recommends", program.package)
    left = [program.missing for program in missing if program.path is None]
    if left and in_ci():
        sys.exit("\n".join(left))
    if left:
        print("Tests that need these programs will be skipped:", *left, sep="\n  ")


def apt_get(*arguments: str) -> None:
    print("apt-get", *arguments, flush=True)
    subprocess.run(["apt-get", "-q", *arguments], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, check=False)


if __name__ == "__main__":
    install()
