"""Where tensors live and how many threads work on them."""

import torch
from threadpoolctl import threadpool_limits

from tokenbridge.config import LauncherConfig


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_device(launcher: LauncherConfig) -> torch.device:
    """The best device; CPU work goes on with the launcher's number of threads from now on."""
    if launcher.threads:
        torch.set_num_threads(launcher.threads)
        threadpool_limits(launcher.threads)  # NumPy's and SciPy's
    return best_device()
