"""Prefect flows: order, retries, schedules. No tensors here, only paths, names and metrics."""

import os
from pathlib import Path

from tokenbridge.base.environment import prepare_environment
from tokenbridge.config.project import enter_project

prepare_environment()
enter_project()
# here, because prefect reads its environment when it is imported; a user's own setting always wins
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))  # not another project's database
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # its first start migrates a database
