"""Transformer layers, as in ViT/MAE: pre-norm, biased qkv, exact GELU, LayerNorm eps 1e-6.

Shapes: N sequences, L positions, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6  # with torch's default, 1e-5, logits differ from the released model's
MLP_RATIO = 4


def layer_norm(width: int, affine: bool = True) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=affine)


def run_block(owner: nn.Module, block: nn.Module, *inputs: Tensor) -> Tensor:
    """Return ``block(*inputs)``; if ``owner`` uses gradient checkpointing, the backward recomputes the activations."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        again: Tensor = owner._gradient_checkpointing_func(block, *inputs)  # type: ignore[operator]  # diffusers sets it
        return again
    output: Tensor = block(*inputs)
    return output


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, dropout: float = 0.0) -> Tensor:
    """Return the softmax attention of q [N, H, L, E] over k, v [N, H, L', E]; ``causal`` needs L = L'.

    The sequences here are short. For them, plain products on a CPU are several times faster than the fused kernel, most
    of all in bf16. Other devices use the fused kernel.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    return F.dropout(scores.softmax(-1).to(v.dtype), dropout) @ v


class Mlp(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(width, MLP_RATIO * width)
        self.contract = nn.Linear(MLP_RATIO * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(self.dropout(F.gelu(self.expand(x)))))


class Attention(nn.Module):
    """Self-attention over all positions: [N, L, D] -> [N, L, D]."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.out_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [N, H, L, D/H]
        mixed = attend(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.out_dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """One block of the spatial transformer."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
