"""A driver in its own process, as a stage is: python -m tests.infra.launching.driver SETTINGS.json ARGUMENTS..."""

import sys
from pathlib import Path

from tokenbridge.base.files import read_json
from tokenbridge.base.program import program
from tokenbridge.config import LauncherConfig
from tokenbridge.infra.launching import launch


def main() -> None:
    settings, arguments = Path(sys.argv[1]), sys.argv[2:]
    launcher = LauncherConfig(**read_json(settings))
    work = settings.parent
    worker = "tests.infra.launching.small_worker"
    with program("driver"):
        launch([str(work), *arguments], root=Path.cwd(), work=work, launcher=launcher, module=worker)
    print("the driver is done")


if __name__ == "__main__":
    main()
