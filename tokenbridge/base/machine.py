"""The processor and the installed packages: a result's last bits may depend on them."""

import os
import platform
from importlib.metadata import distributions
from pathlib import Path

CPU_FIELDS = ("model name", "cpu family", "model", "stepping")


def processor() -> str:
    """Return the processor's name, precise enough to distinguish two generations, and its number of threads."""
    return f"{_model()}, {os.cpu_count()} threads"


def _model() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text().split("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    found = {name.strip(): value.strip() for name, value in fields.items()}
    return " ".join(found[name] for name in CPU_FIELDS if name in found) or platform.machine()


def installed_packages() -> dict[str, str]:
    """Return name -> version for every package of this environment."""
    return {facts["Name"].lower(): facts["Version"] for facts in (package.metadata for package in distributions())}
