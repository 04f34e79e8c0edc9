"""Prefect's own settings for this project, applied before prefect is imported."""

import os
from pathlib import Path

DEFAULTS = {
    "PREFECT_HOME": str(Path(".prefect").resolve()),  # not another project's database
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # its first start migrates a database
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "DO_NOT_TRACK": "true",
}


def apply() -> None:
    """Set what the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
