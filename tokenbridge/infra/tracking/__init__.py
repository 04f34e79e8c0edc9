"""Experiment tracking: stages write to a local spool, and a syncer replays it into MLflow.

So a dead or slow tracking server cannot stop or delay a run, and nothing is lost. The modules:

- ``spool``: ``Tracker``, to which a stage writes, and the folder layout. It imports no MLflow and no torch.
- ``live``: send spools while a run goes on, through the process of ``process``. Neither imports MLflow here.
- ``uri``: the address of the store in use.
- ``pending``: spools as the syncer sees them.
- ``store``: the MLflow store in use, and queries to it.
- ``pages``: MLflow's pages: their addresses, and the experiment's description and saved views.
- ``replay``, ``logged_model``: turn one spool into one MLflow run.
- ``registry``: versions of registered models and their aliases.
- ``sync``: send all spools of a project, for ``live`` or from the command line.
"""

import os
import sys

# These must be set before any module here imports MLflow. A user's own setting always wins.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the syncer tries again from the spool
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "600")  # seconds; models are large
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # no one needs the eight processes that it starts
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it would break up the stages' progress lines


def say(line: str) -> None:
    print(f"tracking: {line}", file=sys.stderr, flush=True)
