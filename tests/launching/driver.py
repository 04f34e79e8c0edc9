"""A driver in a process of its own, as a stage is one: python -m tests.launching.driver SETTINGS.json ARGUMENTS..."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from threading import Timer

from omegaconf import OmegaConf

from tests.conftest import LAUNCHER
from tokenbridge.config import LauncherConfig
from tokenbridge.errors import UserError
from tokenbridge.files import read_json, write_json
from tokenbridge.launching import LaunchError, launch

PATIENCE = 120  # seconds; a test that waits longer has hung


def command(work: Path, *arguments: object, **settings: object) -> list[str]:
    """Of a driver whose workers get ``work`` and ``arguments``."""
    write_json(work / "launcher.json", asdict(replace(LAUNCHER, **settings)))
    return [sys.executable, "-m", "tests.launching.driver", str(work / "launcher.json"), *map(str, arguments)]


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The lines of ``process`` up to the first with these words."""
    assert process.stdout is not None
    lines = []
    timer = Timer(PATIENCE, process.kill)
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


def main() -> None:
    settings, arguments = Path(sys.argv[1]), sys.argv[2:]
    launcher = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LauncherConfig), read_json(settings)))
    assert isinstance(launcher, LauncherConfig)
    work = settings.parent
    worker = "tests.launching.small_worker"
    try:
        launch([str(work), *arguments], root=Path.cwd(), work=work, launcher=launcher, module=worker)
    except (UserError, LaunchError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print("the driver is done")


if __name__ == "__main__":
    main()
