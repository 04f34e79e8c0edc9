"""The device that tensors are on, the precision of computations, and the number of CPU threads.

The code of no other module names bfloat16.
"""

import os

import torch

from tokenbridge.base.checks import AUTO, BF16, FP32, Precision
from tokenbridge.base.machine import processor
from tokenbridge.base.protocols import Launcher

DTYPES = {BF16: torch.bfloat16, FP32: torch.float32}
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # names of torch.cpu.get_capabilities; the last is Arm's
X86 = "x86_64"
AVX512 = "AVX512"  # torch's name for the smallest x86 instruction set with bfloat16
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # environment variables; the second is the older name
AVX512_WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")  # their values at which oneDNN still reports bfloat16


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU.

    From now on, products and convolutions in float32 have its full precision: what needs speed runs in bf16, not TF32.
    """
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions is TF32
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_device(launcher: Launcher) -> torch.device:
    """Return the best device. From now on, torch has the launcher's number of CPU threads and its determinism."""
    if launcher.threads:
        limit_threads(launcher.threads)
    if launcher.deterministic:
        make_deterministic()
    return best_device()


def make_deterministic() -> None:
    """Use only operations that repeat their bits on the same GPU from now on. torch raises an error for any other."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)


def limit_threads(count: int) -> None:
    """Run CPU work with ``count`` threads from now on."""
    from threadpoolctl import threadpool_limits  # here, because machines that only check a GPU need not have it

    torch.set_num_threads(count)
    threadpool_limits(count)  # NumPy's and SciPy's


def has_bf16(device: torch.device) -> bool:
    """Return whether the device computes bfloat16 products in hardware. Others emulate them, many times slower.

    The answer comes from the device's capabilities, so the same machine always gives the same one. On a CPU it honours
    ``ATEN_CPU_CAPABILITY`` and ``ONEDNN_MAX_CPU_ISA``.
    """
    if device.type == "cuda":  # from Ampere on
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in BF16_INSTRUCTIONS):
        return False
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if any(os.environ.get(name, "").upper() in AVX512_WITHOUT_BF16 for name in ONEDNN_LIMITS):
        return False
    return capabilities["architecture"] != X86 or torch.backends.cpu.get_cpu_capability() == AVX512


def resolve_precision(setting: Precision, device: torch.device) -> Precision:
    """Return ``bf16`` or ``fp32``. ``auto`` becomes bf16 if the device has it in hardware, else fp32."""
    if setting == AUTO:
        return BF16 if has_bf16(device) else FP32
    return setting


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which torch computes products and convolutions in ``precision`` (bf16 or fp32)."""
    return torch.autocast(device.type, DTYPES[BF16], enabled=DTYPES[precision] == DTYPES[BF16])


def device_name(device: torch.device) -> str:
    """Return the name that people use for the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def emulation_cost(name: str, device: torch.device) -> str:
    """Return the warning for bf16 on a device that emulates it; ``name`` is the name of the setting."""
    return (
        f"{name} is bf16, which {device_name(device)} only emulates: matrix products take up to 80 times as long as in "
        f"float32, and trainings about 10 times. Set {name}=auto or {name}=fp32"
    )
