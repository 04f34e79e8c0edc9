"""The address of the MLflow store in use: MLFLOW_TRACKING_URI if set, else a SQLite file in the project.

A path in MLFLOW_TRACKING_URI is relative to the project, as the default is, not to the folder of each process.
"""

import os
from pathlib import Path

MANAGED = ("databricks", "uc:")  # addresses without ://
SQLITE = "sqlite:///"


def default_uri(root: Path) -> str:
    return f"{SQLITE}{(root / 'mlflow.db').resolve().as_posix()}"


def tracking_uri(root: Path) -> str:
    """Return the store's address, with an absolute path if it is a file or folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)
    if uri.startswith(SQLITE):
        return f"{SQLITE}{(root / uri.removeprefix(SQLITE)).resolve().as_posix()}"
    if "://" in uri or uri.startswith(MANAGED):
        return uri
    return (root / uri.removeprefix("file:")).resolve().as_uri()
