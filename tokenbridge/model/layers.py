"""Transformer layers, as in ViT/MAE: pre-norm, biased qkv, exact GELU, LayerNorm eps 1e-6.

Shapes: N sequences, L positions, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNFUSED = "cpu"  # the type of device that computes the attention of short sequences as plain products
FUSED_FROM = 128  # queries; on a CPU, in float32, the fused kernel is faster from here on
NORM_EPS = 1e-6  # with torch's default, 1e-5, logits differ from the released model's
MLP_RATIO = 4
INIT_STD = 0.02  # of embeddings and learned positions
INDEX_LIMIT = 2**31 - 1  # FlashAttention-2's backward counts the numbers of its scratch memory in 32 bits
GRID_LIMIT = 65_535  # sequences in one launch of a CUDA kernel


def layer_norm(width: int, affine: bool = True) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=affine)


def run_block(owner: nn.Module, block: nn.Module, *inputs: Tensor) -> Tensor:
    """Return ``block(*inputs)``; if ``owner`` uses gradient checkpointing, the backward recomputes the activations."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        again: Tensor = owner._gradient_checkpointing_func(block, *inputs)  # type: ignore[operator]  # diffusers sets it
        return again
    output: Tensor = block(*inputs)
    return output


def scratch_numbers(heads: int, length: int, size: int) -> int:
    """Return how many float32 numbers FlashAttention-2's backward allocates for a sequence [H, L, E].

    It pads the length to a multiple of 128, and the size of a head to a multiple of 32.
    """
    return heads * -(-length // 128) * 128 * -(-size // 32) * 32


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Return the softmax attention of q [N, H, L, E] over k, v [N, H, L', E] as [N, L, D]; ``causal`` needs L = L'.

    The ``mask`` [L, L'] is true where a query sees a key; None: everywhere.

    The fused kernels of GPUs fail beyond ``INDEX_LIMIT`` and ``GRID_LIMIT``. So more sequences are computed in several
    parts. Each sequence is computed alone, so the result is the same.
    """
    parts = -(-q.shape[0] // min(GRID_LIMIT, max(1, INDEX_LIMIT // scratch_numbers(*q.shape[1:]))))
    if parts > 1:
        split = zip(q.chunk(parts), k.chunk(parts), v.chunk(parts), strict=True)
        return torch.cat([attend(*each, causal=causal, mask=mask, dropout=dropout) for each in split])
    return _attend(q, k, v, causal, mask, dropout).transpose(1, 2).flatten(2)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, dropout: float) -> Tensor:
    """Return the attention as [N, H, L, E].

    On a CPU, plain products are faster than the fused kernel for short sequences, and in bfloat16. For long ones in
    float32 the fused kernel is faster, and keeps no matrix [L, L']. Other devices use the fused kernel.
    """
    if q.device.type != UNFUSED or (q.dtype == torch.float32 and q.shape[2] >= FUSED_FROM):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal and mask is None)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return F.dropout(scores.softmax(-1).to(v.dtype), dropout) @ v


class Mlp(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(width, MLP_RATIO * width)
        self.contract = nn.Linear(MLP_RATIO * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(self.dropout(F.gelu(self.expand(x)))))


def gather(x: Tensor, positions: Tensor) -> Tensor:
    """Return x [N, L, D] at positions [N, K]: [N, K, D]."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


class Cache:
    """Keys and values of one block for the places so far, in memory for all ``length`` places: each [N, H, length, E].

    To forget the last places, make ``filled`` smaller.
    """

    def __init__(self, length: int) -> None:
        self.length, self.filled = length, 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values [N, H, L, E] of the next L places, and return those of all places so far."""
        if self.filled == 0:
            count, heads, _, size = keys.shape
            self.keys, self.values = (each.new_empty(count, heads, self.length, size) for each in (keys, values))
        end = self.filled + keys.shape[2]
        self.keys[:, :, self.filled : end], self.values[:, :, self.filled : end] = keys, values
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Self-attention over all positions, or if it is causal, over each position and those before it."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.out_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Return what every position of x [N, L, D] sees, or only the ``wanted`` positions [N, K]: [N, K, D].

        Causal attention computes every position.
        """
        if wanted is None:
            q, k, v = self._queries_keys_values(x)
        else:
            (q_weight, kv_weight), (q_bias, kv_bias) = (
                each.tensor_split([x.shape[-1]]) for each in (self.qkv.weight, self.qkv.bias)
            )
            q = F.linear(gather(x, wanted), q_weight, q_bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = F.linear(x, kv_weight, kv_bias).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, causal=self.causal, dropout=self.dropout if self.training else 0.0)
        return self.out_dropout(self.out(mixed))

    def extend(self, x: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """Return what the next L places x [N, L, D] see of the cached places and of each other; they are cached too.

        Args:
            mask: bool [L, L'], over the cached and the next places.
        """
        q, k, v = self._queries_keys_values(x)
        mixed: Tensor = self.out(attend(q, *cache.extend(k, v), mask=mask))
        return mixed

    def _queries_keys_values(self, x: Tensor) -> Tensor:
        """Return [3, N, H, L, D/H]."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """One block of the spatial transformer."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attention = Attention(width, heads, dropout, causal)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, dropout)

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Return the block's output at every position of x [N, L, D], or only at the ``wanted`` ones [N, K]."""
        mixed = self.attention(self.norm1(x), wanted)
        x = (x if wanted is None else gather(x, wanted)) + mixed
        return x + self.mlp(self.norm2(x))

    def extend(self, x: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """Return the block's output at the next places x [N, L, D] in sampling, as ``Attention.extend``."""
        x = x + self.attention.extend(self.norm1(x), cache, mask)
        return x + self.mlp(self.norm2(x))
