"""The head's attention on more sequences than FlashAttention's 32-bit indices can address at once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.conftest import Sizes
from tokenbridge.base.checks import BF16
from tokenbridge.base.device import DTYPES
from tokenbridge.model import layers
from tokenbridge.model.layers import attend

pytestmark = pytest.mark.gpu

HEADS, SLOTS, WIDTH = 8, 16, 128  # of L's head
PART = 1000  # sequences of which plain products are computed at once, in float32
TOLERANCE = 0.03  # of the relative error of any sequence; bf16 has three digits


def with_gradients(*inputs: Tensor) -> list[Tensor]:
    """The output of causal attention, and the gradients of q, k and v for half the sum of its squares."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attend(*leaves, causal=True)
    output.backward(output.detach())
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_forward_and_backward_are_those_of_plain_attention(
    device: torch.device, sizes: Sizes, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    torch.manual_seed(0)
    shape = (sizes.rows, HEADS, SLOTS, WIDTH)
    inputs = [torch.randn(shape, device=device, dtype=DTYPES[BF16]) for _ in range(3)]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = with_gradients(*inputs)
    assert len(found) == 4
    monkeypatch.setattr(layers, "UNFUSED", device.type)
    worst = 0.0
    for rows in torch.arange(sizes.rows).split(PART):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        exact = with_gradients(*(each[part].float() for each in inputs))
        for ours, theirs in zip(found, exact, strict=True):
            errors = (ours[part].float() - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
            worst = max(worst, float(errors.max()))
    record_property("largest relative error of a sequence", f"{worst:.2%}")
    assert worst < TOLERANCE
