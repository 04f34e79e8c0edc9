"""The processor and the installed packages: a result's last bits may depend on them."""

import os
import platform
import re
from importlib.metadata import distributions
from pathlib import Path

CPU_FIELDS = ("model name", "cpu family", "model", "stepping")
# that this process may use: a container or a job may have fewer than the machine
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PACKAGE_FIELDS = re.compile(r"^(Name|Version): *(.+?)\s*$", re.MULTILINE)


def processor() -> str:
    """Return the processor's name, precise enough to distinguish two generations, and how many threads we may use."""
    return f"{_model()}, {CORES} threads"


def _model() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text().split("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    found = {name.strip(): value.strip() for name, value in fields.items()}
    return " ".join(found[name] for name in CPU_FIELDS if name in found) or platform.machine()


def installed_packages() -> dict[str, str]:
    """Return name -> version for every package of this environment.

    Only the two fields are read: to parse all of a few hundred files takes a second.
    """
    texts = (package.read_text("METADATA") or package.read_text("PKG-INFO") or "" for package in distributions())
    found = (dict(PACKAGE_FIELDS.findall(text.split("\n\n")[0])) for text in texts)
    return {fields["Name"].lower(): fields["Version"] for fields in found if fields}
