"""Attention on a CPU is the fused kernel's attention."""

import pytest
import torch
import torch.nn.functional as F

from tokenbridge.model.layers import attend


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 8, 20])
def test_it_equals_the_fused_kernel(causal: bool, length: int) -> None:
    q, k, v = torch.randn(3, 2, 4, length, 16, generator=torch.Generator().manual_seed(0))
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(attend(q, k, v, causal=causal), fused, atol=1e-6, rtol=1e-5)
