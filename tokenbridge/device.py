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
        limit_threads(launcher.threads)
    device = best_device()
    if not has_bf16(device):
        print("note: this GPU has no bfloat16 and only imitates it: say vae.precision=fp32 if that is slow", flush=True)
    return device


def limit_threads(count: int) -> None:
    """CPU work goes on with so many threads from now on."""
    torch.set_num_threads(count)
    threadpool_limits(count)  # NumPy's and SciPy's


def has_bf16(device: torch.device) -> bool:
    """Whether it computes in bfloat16 by itself. CPUs do, if slowly; a GPU before Ampere is given it by imitation."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
