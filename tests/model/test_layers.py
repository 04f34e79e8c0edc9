"""Attention: on a CPU it is the fused kernel's, and no launch on a GPU has more sequences than its kernels can take."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenbridge.model import layers
from tokenbridge.model.layers import FUSED_FROM, GRID_LIMIT, attend, scratch_numbers
from tokenbridge.ops.planning.steps import HeldBytes


def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 8, 20])
def test_it_equals_the_fused_kernel(causal: bool, length: int) -> None:
    q, k, v = torch.randn(3, 2, 4, length, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attend(q, k, v, causal=causal), fused(q, k, v, causal), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["full", "causal", "masked"])
def test_long_sequences_have_the_same_result_without_a_matrix_of_all_pairs(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 2 * FUSED_FROM, 16, generator=random)
    length, causal = q.shape[2], kind == "causal"
    mask = torch.rand(length, length, generator=random) < 0.7 if kind == "masked" else None
    with HeldBytes() as held:
        found = attend(q, k, v, causal=causal, mask=mask)
    assert held.most < q.shape[:2].numel() * length**2, "a byte for each pair; scores would take four"
    seen = torch.ones(length, length, dtype=torch.bool).tril() if causal else mask
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    weights = (scores if seen is None else scores.masked_fill(~seen, -math.inf)).softmax(-1)
    torch.testing.assert_close(found, (weights @ v).transpose(1, 2).flatten(2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [20, 2 * FUSED_FROM])
def test_a_sequence_does_not_depend_on_its_batch(length: int) -> None:
    q, k, v = torch.randn(3, 5, 4, length, 16, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([attend(q[[i]], k[[i]], v[[i]]) for i in range(len(q))])
    torch.testing.assert_close(attend(q, k, v), alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "limit"), [("GRID_LIMIT", 3), ("INDEX_LIMIT", 3 * 4 * 128 * 32), ("INDEX_LIMIT", 1)])
def test_more_sequences_than_a_launch_can_take_are_computed_in_parts(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = torch.randn(3, 7, 4, 5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    whole = attend(q, k, v, causal=True)
    gradients = torch.autograd.grad(whole.square().sum(), (q, k, v))
    taken: list[int] = []
    monkeypatch.setattr(layers, name, limit)
    plain = layers._attend
    monkeypatch.setattr(layers, "_attend", lambda q, *rest: taken.append(len(q)) or plain(q, *rest))
    cut = attend(q, k, v, causal=True)
    assert taken == ([1] * 7 if limit == 1 else [3, 3, 1])
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(torch.autograd.grad(cut.square().sum(), (q, k, v)), gradients)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    sequences=st.integers(1, 600_000),
    heads=st.sampled_from([1, 4, 8, 16]),
    length=st.sampled_from([1, 16, 128, 320]),
    size=st.sampled_from([8, 24, 64, 128]),
)
def test_no_launch_on_a_gpu_is_beyond_its_limits(sequences: int, heads: int, length: int, size: int) -> None:
    """Seen on the meta device, which takes the branch of GPUs; heads of size 8 and 24 count as 32."""
    q = torch.empty(sequences, heads, length, size, device="meta")
    shapes: list[torch.Size] = []
    kernel = F.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            F, "scaled_dot_product_attention", lambda q, *a, **k: shapes.append(q.shape) or kernel(q, *a, **k)
        )
        assert attend(q, q, q).shape == (sequences, length, heads * size)
    assert sum(shape[0] for shape in shapes) == sequences
    padded = heads * {1: 128, 16: 128, 128: 128, 320: 384}[length] * max(size, 32)
    assert scratch_numbers(heads, length, size) == padded
    assert all(shape[0] <= GRID_LIMIT and shape[0] * padded <= 2**31 - 1 for shape in shapes)
    assert len(shapes) == 1 or sequences > GRID_LIMIT or sequences * padded > 2**31 - 1
