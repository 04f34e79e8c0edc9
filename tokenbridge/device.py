"""Where tensors live and how many threads work on them."""

import torch

from tokenbridge.config import LauncherConfig


def pick_device(launcher: LauncherConfig) -> torch.device:
    """The GPU if there is one; on a CPU, with the launcher's number of threads."""
    if launcher.threads:
        torch.set_num_threads(launcher.threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
