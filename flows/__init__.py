"""Prefect flows: order, retries, schedules. No tensors here, only paths, names and metrics."""

from flows import settings

settings.apply()  # here, because prefect reads its environment when it is imported
