"""The dimension-wise autoregressive head (paper Sec. 3.3): p(q_1 | z) p(q_2 | z, q_1) ... p(q_C | z, q_<C).

Shapes: M positions (any number of images' positions, flat), C dimensions in head order, B levels,
Z width of the spatial features z, D width of the head, H heads. Slot i of the sequence predicts dimension i.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenbridge.model.layers import Mlp, attend, layer_norm

KeyValues = tuple[Tensor, Tensor]  # each [M, H, slots so far, D/H]


class CausalAttention(nn.Module):
    """Causal self-attention over slots with normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = layer_norm(width // heads)
        self.k_norm = layer_norm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, past: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        """All slots at once (``past`` is None), or the next one [M, 1, D] after ``past``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        mixed = attend(q, k, v, causal=past is None)
        return self.out(mixed.transpose(1, 2).flatten(2)), (k, v)


class HeadBlock(nn.Module):
    """A block whose norms are scaled, shifted and gated by the condition (adaLN-zero, DiT)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, past: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        mixed, present = self.attention(self.norm1(x) * (1 + scale1) + shift1, past)
        x = x + gate1 * mixed
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2), present


class DimensionHead(nn.Module):
    """Logits of every dimension's level, each conditioned on the dimensions before it.

    Differs: the tables of the C dimensions are stacked in one tensor, which is faster and holds the
    same parameters.
    """

    def __init__(self, *, dimensions: int, levels: int, features: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.dimensions, self.levels = dimensions, levels
        self.condition = nn.Linear(features, width)
        self.level_embedding = nn.Embedding((dimensions - 1) * levels, width)  # of the dimension before each slot
        self.slot_embedding = nn.Parameter(torch.empty(1, dimensions, width))
        self.modulation_embedding = nn.Parameter(torch.empty(1, dimensions, width))
        self.blocks = nn.ModuleList(HeadBlock(width, heads) for _ in range(depth))
        self.norm = layer_norm(width)
        self.final_norm = layer_norm(width, affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output_weight = nn.Parameter(torch.empty(dimensions, levels, width))
        self.output_bias = nn.Parameter(torch.zeros(dimensions, levels))
        self.register_buffer("offsets", torch.arange(dimensions - 1) * levels, persistent=False)

    offsets: Tensor

    def forward(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits [M, C, B] from features z [M, Z] and tokens [M, C] in head order."""
        c = self.condition(z)
        known = self.level_embedding(tokens[:, :-1] + self.offsets)
        x = torch.cat([c[:, None], known.to(c.dtype)], dim=1) + self.slot_embedding
        # Differs: slot 0 holds the bare condition here and in ``sample``; the released sampler adds
        # modulation_embedding[0] to it, which its training never does.
        condition = F.silu(c[:, None] + self.modulation_embedding)
        for block in self.blocks:
            x, _ = block(x, condition)
        return self._logits(x, condition, slice(None))

    def sample(self, z: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Tokens [M, C], in head order, dimension by dimension with a key-value cache.

        Differs: the released sampler computes the whole prefix anew at every dimension, with the same result.

        Args:
            choose: picks the level [M] of dimension i from its logits [M, B].
        """
        c = self.condition(z)
        x = c
        chosen: list[Tensor] = []
        caches: list[KeyValues | None] = [None] * len(self.blocks)
        for i in range(self.dimensions):
            if i:
                x = self.level_embedding(chosen[-1] + self.offsets[i - 1])
            logits, caches = self._step(x, c, i, caches)
            chosen.append(choose(logits, i))
        return torch.stack(chosen, dim=1)

    def _step(
        self, x: Tensor, c: Tensor, i: int, caches: list[KeyValues | None]
    ) -> tuple[Tensor, list[KeyValues | None]]:
        """Logits [M, B] of dimension i, whose slot input is x [M, D]."""
        x = (x + self.slot_embedding[:, i])[:, None]
        condition = F.silu(c + self.modulation_embedding[:, i])[:, None]
        presents: list[KeyValues | None] = []
        for block, past in zip(self.blocks, caches, strict=True):
            x, present = block(x, condition, past)
            presents.append(present)
        return self._logits(x, condition, slice(i, i + 1))[:, 0], presents

    def _logits(self, x: Tensor, condition: Tensor, slots: slice) -> Tensor:
        scale, shift = self.final_modulation(condition).chunk(2, dim=-1)
        x = self.final_norm(self.norm(x)) * (1 + scale) + shift
        return torch.einsum("mcd,cbd->mcb", x, self.output_weight[slots].to(x.dtype)) + self.output_bias[slots]
