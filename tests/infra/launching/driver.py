"""A driver in its own process, as a stage is: python -m tests.infra.launching.driver SETTINGS.json ARGUMENTS..."""

import sys
from pathlib import Path

from tokenbridge.base.console import log_to_console
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json
from tokenbridge.config import LauncherConfig
from tokenbridge.infra.launching import LaunchError, launch


def main() -> None:
    settings, arguments = Path(sys.argv[1]), sys.argv[2:]
    log_to_console()
    launcher = LauncherConfig(**read_json(settings))
    work = settings.parent
    worker = "tests.infra.launching.small_worker"
    try:
        launch([str(work), *arguments], root=Path.cwd(), work=work, launcher=launcher, module=worker)
    except (UserError, LaunchError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print("the driver is done")


if __name__ == "__main__":
    main()
