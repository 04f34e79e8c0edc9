"""Starting drivers, and reading what they write."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from threading import Timer

from tests.support.patience import PATIENCE
from tests.support.small_model import LAUNCHER
from tokenbridge.base.files import write_json


def command(work: Path, *arguments: object, **settings: object) -> list[str]:
    """Of a driver whose workers get ``work`` and ``arguments``."""
    write_json(work / "launcher.json", asdict(replace(LAUNCHER, **settings)))
    return [sys.executable, "-m", "tests.infra.launching.driver", str(work / "launcher.json"), *map(str, arguments)]


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The lines of ``process`` up to the first with these words."""
    assert process.stdout is not None
    lines = []
    timer = Timer(PATIENCE / 2, process.kill)  # before the time limit of a fast test
    timer.start()
    for line in process.stdout:
        lines.append(line)
        if words in line:
            timer.cancel()
            return "".join(lines)
    raise AssertionError(f"no {words!r} in:\n{''.join(lines)}")


def rest(process: subprocess.Popen[str]) -> str:
    """What a process writes until it ends."""
    return process.communicate(timeout=PATIENCE)[0]
