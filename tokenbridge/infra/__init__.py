"""Wrappers of outside systems: DVC, git, MLflow, S3, and the launchers of processes."""
