"""Experiment tracking: stages write to a local spool, a syncer replays it into MLflow.

A dead or slow tracking server can therefore neither stop nor delay a run, and nothing is lost:

- ``spool``: ``Tracker``, what a stage writes to; the folder layout; free of MLflow and torch.
- ``pending``: what the syncer sees of spools.
- ``store``: which MLflow store is used, and what the wrapper asks it.
- ``pages``: what people see of it in MLflow's pages: the experiment's description and saved views; addresses.
- ``replay``, ``logged_model``: one spool becomes one MLflow run.
- ``registry``: versions of registered models and their aliases; ``served_model``: what a server of one runs.
- ``sync``: all spools of a project, live or from the command line.
"""

import os

# Set before any module here imports MLflow. A user's own setting always wins.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the spool is the retry
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "600")  # seconds; models are large
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight processes that nobody asked for
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it would tear the stages' progress lines
