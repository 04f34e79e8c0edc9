"""The head, which predicts the levels of all dimensions of one token from its features z (paper Sec. 3.3).

Autoregressive, the paper's choice: p(q_1 | z) p(q_2 | z, q_1) ... p(q_C | z, q_<C).
Parallel: each p(q_i | z) from z alone (Table 2a).
Both can predict g dimensions jointly that are next to each other in head order (Table 2d).

Shapes: M positions (of any number of images, flattened), C dimensions in head order, B levels, g dimensions of a group,
G = C / g slots with one prediction each, J = B**g joint classes, Z width of the spatial features z, D width of the
head, H heads.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenbridge.base.errors import UserError
from tokenbridge.config import HEAD_MODULATIONS
from tokenbridge.model.layers import INIT_STD, Cache, Mlp, attend, layer_norm, run_block


class SlotAttention(nn.Module):
    """Self-attention over slots with normalised queries and keys."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = layer_norm(width // heads)
        self.k_norm = layer_norm(width // heads)
        self.out = nn.Linear(width, width)
        self.out_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Attend over all slots x [M, G, D], or from the next slot x [M, 1, D] over the cached slots and itself.

        Args:
            cache: keys and values of the slots before; those of the next slot are added to it.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(k, v)
        mixed = attend(q, k, v, causal=self.causal and cache is None, dropout=self.dropout if self.training else 0.0)
        output: Tensor = self.out_dropout(self.out(mixed))
        return output


class HeadBlock(nn.Module):
    """A block whose norms are scaled, shifted and gated by the condition (adaLN-zero, DiT)."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attention = SlotAttention(width, heads, causal, dropout)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, dropout)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the output of all slots x [M, G, D], with the condition [M, G, D] of each, or [M, 1, D] of all."""
        return self.modulated(x, self.modulation(condition))

    def modulated(self, x: Tensor, modulation: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the same with what ``self.modulation`` gave; with a cache, of the next slot x [M, 1, D] only."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = torch.addcmul(x, gate1, self.attention(torch.addcmul(shift1, self.norm1(x), 1 + scale1), cache))
        return torch.addcmul(x, gate2, self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2)))


class DimensionHead(nn.Module):
    """The network that gives the logits of every slot's joint class.

    A joint class is a number of g base-B digits, one for each dimension. The first dimension's digit is the most
    significant one. Without grouping (g = 1), the joint class is one dimension's level.

    The paper does not say how its parallel and grouped heads are made. Here they differ from the autoregressive head
    only in what a slot sees and in its number of classes.

    Differs: the tables of the slots are stacked in one tensor, which is faster and holds the same parameters.

    Args:
        kind: autoregressive, where a slot sees the slots before it; or parallel, where a slot sees no token.
        group: g.
        modulation: of the norms and gates: from a condition for each ``slot``, or from one for all slots of the
            ``position``, without the modulation embedding.
        released_slot0: sample as the released code does. Its sampler adds the modulation embedding of slot 0 to the
            input of slot 0, but its training does not. The parallel head ignores this.

    Raises:
        UserError: for an unknown modulation, a group that does not divide the dimensions, or ``released_slot0``
            without a modulation embedding.
    """

    def __init__(
        self,
        *,
        dimensions: int,
        levels: int,
        features: int,
        width: int,
        depth: int,
        heads: int,
        kind: str = "autoregressive",
        group: int = 1,
        modulation: str = "slot",
        dropout: float = 0.0,
        released_slot0: bool = False,
    ) -> None:
        super().__init__()
        if group < 1 or dimensions % group:
            raise UserError(f"head_group is {group}: it must divide the {dimensions} dimensions of a token")
        if modulation not in HEAD_MODULATIONS:
            raise UserError(f"head_modulation is {modulation!r}: choose one of {', '.join(HEAD_MODULATIONS)}")
        if released_slot0 and modulation != "slot":
            raise UserError(f"head_modulation is {modulation!r}: released_slot0 needs slot")
        self.levels, self.group, self.released_slot0 = levels, group, released_slot0
        self.autoregressive = kind == "autoregressive"
        self.gradient_checkpointing = False
        self.loss_by_parts = True  # see head_loss.py
        self.slots, self.classes = dimensions // group, levels**group
        self.condition = nn.Linear(features, width)
        if self.autoregressive:  # embeds the class of the slot before each slot
            self.level_embedding = nn.Embedding((self.slots - 1) * self.classes, width)
        self.slot_embedding = nn.Parameter(torch.empty(1, self.slots, width))
        of_slots = torch.empty(1, self.slots, width) if modulation == "slot" else None
        self.modulation_embedding = None if of_slots is None else nn.Parameter(of_slots)
        self.blocks = nn.ModuleList(HeadBlock(width, heads, self.autoregressive, dropout) for _ in range(depth))
        self.norm = layer_norm(width)
        self.final_norm = layer_norm(width, affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output_weight = nn.Parameter(torch.empty(self.slots, self.classes, width))
        self.output_bias = nn.Parameter(torch.zeros(self.slots, self.classes))
        self.register_buffer("offsets", torch.arange(self.slots - 1) * self.classes, persistent=False)
        self.register_buffer("places", levels ** torch.arange(group).flip(0), persistent=False)

    loss_numbers = 0  # random numbers of a position that the loss needs

    @property
    def draw_numbers(self) -> int:
        """Random numbers of a position that a draw needs at most: C."""
        return self.slots * self.group

    @property
    def numbers(self) -> int:
        """Numbers in an activation of one position."""
        return self.slot_embedding.numel()

    @property
    def outputs(self) -> int:
        """Logits of one position."""
        return self.slots * self.classes

    offsets: Tensor  # [G - 1], where each slot's table starts in level_embedding
    places: Tensor  # [g], the place values of a joint class's digits

    def initialize(self) -> None:
        """Initialize the weights that belong to slots, and adaLN. The linears and embeddings are those of the model."""
        for parameter in (self.slot_embedding, self.modulation_embedding):
            if parameter is not None:
                nn.init.normal_(parameter, std=INIT_STD)
        for table in self.output_weight:
            nn.init.xavier_uniform_(table)
        for name, parameter in self.named_parameters():
            if name.endswith("modulation.weight"):
                nn.init.zeros_(parameter)

    def join(self, tokens: Tensor) -> Tensor:
        """Return the joint classes [..., G] of tokens [..., C] in head order."""
        return (tokens.unflatten(-1, (self.slots, self.group)) * self.places).sum(-1)

    def split(self, joint: Tensor) -> Tensor:
        """Return the tokens [..., C], in head order, of joint classes [..., G]: the inverse of ``join``."""
        return (joint[..., None] // self.places % self.levels).flatten(-2)

    def forward(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Return logits [M, G, J] from features z [M, Z], teacher-forced by tokens [M, C] in head order.

        The parallel head ignores the tokens.
        """
        c = self.condition(z)
        x = c[:, None]
        if self.autoregressive:
            known = self.level_embedding(self.join(tokens)[:, :-1] + self.offsets)
            x = torch.cat([x, known.to(c.dtype)], dim=1)
        return self._all_slots(x, c)

    def loss(self, z: Tensor, tokens: Tensor, _: Tensor) -> Tensor:
        """Return the sum of the cross-entropies, in nats, of tokens [M, C] in head order, from features z [M, Z]."""
        logits = self(z, tokens).flatten(0, 1).float()
        return F.cross_entropy(logits, self.join(tokens).flatten(), reduction="sum")

    def sample(self, z: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Sample tokens [M, C], in head order: slot by slot with a key-value cache, or all slots at once (parallel).

        Differs: the released sampler computes the whole prefix again at every slot, with the same result.

        Args:
            z: features [M, Z].
            choose: chooses the joint classes [M] of slot i from its logits [M, J]; called for each slot in turn.
        """
        c = self.condition(z)
        if not self.autoregressive:
            logits = self._all_slots(c[:, None], c)
            return self.split(torch.stack([choose(logits[:, i], i) for i in range(self.slots)], dim=1))
        condition = self._condition(c)
        blocks = [block for block in self.blocks if isinstance(block, HeadBlock)]  # all: mypy does not know their type
        modulations = [block.modulation(condition).expand(-1, self.slots, -1) for block in blocks]
        final = self.final_modulation(condition).expand(-1, self.slots, -1)
        caches = [Cache(self.slots) for _ in blocks]
        # Differs: by default, slot 0 gets only the condition, as in training
        x = c
        if self.released_slot0 and self.modulation_embedding is not None:  # which the second always is then
            x = c + self.modulation_embedding[:, 0]
        chosen: list[Tensor] = []
        for i in range(self.slots):
            if i:
                x = self.level_embedding(chosen[-1] + self.offsets[i - 1])
            x = (x + self.slot_embedding[:, i])[:, None]
            slot = slice(i, i + 1)
            for block, modulation, cache in zip(blocks, modulations, caches, strict=True):
                x = block.modulated(x, modulation[:, slot], cache)
            x = self._modulated_norm(x, final[:, slot])[:, 0]
            logits = F.linear(x, self.output_weight[i], self.output_bias[i])
            chosen.append(choose(logits, i))
        return self.split(torch.stack(chosen, dim=1))

    def _condition(self, c: Tensor) -> Tensor:
        """Return the condition [M, G, D] of the slots, or [M, 1, D] of all, from that of the positions [M, D]."""
        return F.silu(c[:, None] if self.modulation_embedding is None else c[:, None] + self.modulation_embedding)

    def _all_slots(self, x: Tensor, c: Tensor) -> Tensor:
        """Return logits [M, G, J] of all slots with inputs x [M, G, D], or [M, 1, D] if all inputs are the same."""
        x = x + self.slot_embedding
        condition = self._condition(c)
        for block in self.blocks:
            x = run_block(self, block, x, condition)
        x = self._modulated_norm(x, self.final_modulation(condition))
        return torch.einsum("mcd,cbd->mcb", x, self.output_weight.to(x.dtype)) + self.output_bias

    def _modulated_norm(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Return what the output tables see [M, slots, D], from x and the ``final_modulation`` [M, slots, 2 D]."""
        scale, shift = modulation.chunk(2, dim=-1)
        return torch.addcmul(shift, self.final_norm(self.norm(x)), 1 + scale)
