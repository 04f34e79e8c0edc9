"""The processor's matrix rate, and the operations of a call.

FLOPs are counted by torch: matrix products and convolutions only, and a product with its sum counts as two. The matrix
rate is that of a product of two 1024 x 1024 matrices. Measure it beside each call, because other work on the machine
changes it.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

SIDE = 1024  # of the matrices whose product gives the rate
CALLS = 7
ATEN = torch.ops.aten
# torch has formulas for a GPU's fused attention only
FORMULAS = flop_registry | {
    ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[ATEN._scaled_dot_product_flash_attention],
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        ATEN._scaled_dot_product_flash_attention_backward
    ],
}
Result = TypeVar("Result")


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype) for _ in range(2))
    return 2 * SIDE**3 / seconds(lambda: a @ b)


def seconds(call: Callable[[], object]) -> float:
    """Return the median time of several calls, after one to warm up."""
    call()
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


class Operations(TorchDispatchMode):
    """Count the operations within it. torch's own counter refuses ``autograd.grad`` with weights of modules."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if formula:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(call: Callable[[], Result]) -> tuple[int, Result]:
    """Return the operations of a call, and its result."""
    with Operations() as counter:
        result = call()
    return int(counter.total), result
