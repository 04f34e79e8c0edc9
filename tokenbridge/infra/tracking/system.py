"""System metrics of a running stage, under the names that MLflow shows as system metrics."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import psutil

from tokenbridge.base.files import DiskFullError

MEGABYTE = 1e6


def gpu_metrics() -> dict[str, float]:
    """Return the memory in use per GPU, or nothing if this process has not initialised CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # missing as long as the main thread imports torch
    if cuda is None or not cuda.is_initialized():  # do not initialise CUDA here
        return {}
    found: dict[str, float] = {}
    for index in range(cuda.device_count()):
        free, total = cuda.mem_get_info(index)
        found[f"system/gpu_{index}_memory_usage_megabytes"] = (total - free) / MEGABYTE
        found[f"system/gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
    return found


def system_metrics() -> dict[str, float]:
    """Return one sample of the machine. CPU utilisation is the mean since the previous sample."""
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / MEGABYTE,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_available_megabytes": disk.free / MEGABYTE,
        "system/network_receive_megabytes": network.bytes_recv / MEGABYTE if network else 0.0,
        "system/network_transmit_megabytes": network.bytes_sent / MEGABYTE if network else 0.0,
    } | gpu_metrics()


class SystemSampler(threading.Thread):
    """Call ``record(metrics, step)`` every ``interval`` seconds, and once more when stopped."""

    def __init__(self, record: Callable[[dict[str, float], int], None], interval: float) -> None:
        super().__init__(name="system metrics", daemon=True)
        self.record, self.interval, self.stopping = record, interval, threading.Event()
        psutil.cpu_percent()  # the first call has nothing to compare with
        self.start()

    def run(self) -> None:
        with suppress(DiskFullError):  # the stage's own next record reports the full disk
            for step in count():
                last = self.stopping.wait(self.interval)
                self.record(system_metrics(), step)
                if last:
                    return

    def stop(self) -> None:
        self.stopping.set()
        self.join()
