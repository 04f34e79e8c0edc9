"""The environment of flows and Prefect's own settings for this project, applied before prefect is imported."""

import os
from pathlib import Path

from tokenbridge.base.environment import prepare_environment
from tokenbridge.config.project import enter_project

DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # its first start migrates a database
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "DO_NOT_TRACK": "true",
}


def apply() -> None:
    """Make the project the current folder, and set what the user has not set."""
    prepare_environment()
    enter_project()
    home = str(Path(".prefect").resolve())  # not another project's database
    for name, value in (DEFAULTS | {"PREFECT_HOME": home}).items():
        os.environ.setdefault(name, value)
