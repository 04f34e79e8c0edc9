"""Prefect flows: order, retries, schedules. No tensors here, only paths, names and metrics."""
