"""Bytes that one image keeps from the forward for the backward, by part.

Each line of the formulas names what autograd saves, and counts each storage once. The tests compare the formulas with
what torch's saved_tensors_hooks see. Under bf16 autocast, matrix products save bf16 copies of their inputs, while norms
and the residual stream stay float32. On a GPU, autocast also widens queries and keys for the head's norms, and
attention is the fused kernel, which keeps no scores.

Shapes: P buffer positions, V visible and K masked ones of S, D width, H heads; the head's G slots, J classes, W width.
"""

from dataclasses import dataclass

from tokenbridge.model.layers import MLP_RATIO
from tokenbridge.ops.planning.sizes import Sizes

FULL = 4  # bytes of a float32
INDEX = 8
MASK = 1
STATISTICS = 2 * FULL  # mean and deviation, which a norm keeps for each row


@dataclass(frozen=True)
class Numerics:
    """The numeric behaviour of a device."""

    bf16: bool  # autocast
    fused: bool  # the fused attention of GPUs; False: the plain products of CPUs

    @property
    def half(self) -> int:
        """Bytes of each number in a matrix product's inputs and outputs."""
        return 2 if self.bf16 else FULL


@dataclass(frozen=True)
class Activations:
    """Bytes of activations, by part of the model."""

    encoder: float
    decoder: float
    head: float
    working: float  # at the peak, beyond what is saved: gradients and, with checkpointing, one block's activations

    @property
    def total(self) -> float:
        return self.encoder + self.decoder + self.head + self.working


def activations(sizes: Sizes, masked: int, numerics: Numerics, checkpointed: bool = False) -> Activations:
    """Return the activations of one image whose ``masked`` positions are predicted.

    Args:
        checkpointed: keep only each block's input, and compute the rest again.
    """
    short, long = sizes.buffer + sizes.positions - masked, sizes.buffer + sizes.positions
    slots = sizes.slots * masked
    spatial = {length: length * _spatial_token(sizes, length, numerics) for length in (short, long)}
    in_head = slots * _head_token(sizes, numerics)
    working: float = _gradients(numerics) * max(long * sizes.width, slots * sizes.head_width)
    encoder = sizes.encoder_depth * (short * FULL * sizes.width if checkpointed else spatial[short])
    decoder = sizes.decoder_depth * (long * FULL * sizes.width if checkpointed else spatial[long])
    head = sizes.head_depth * (slots * FULL * sizes.head_width if checkpointed else in_head)
    if checkpointed:
        head += slots * FULL * sizes.head_width  # the condition, one for all blocks
        working += max(spatial[long] - long * FULL * sizes.width, in_head - slots * FULL * sizes.head_width)
    return Activations(
        encoder + _around_encoder(sizes, short, numerics),
        decoder + long * (FULL * sizes.width + STATISTICS),  # the last norm
        head + _around_head(sizes, masked, numerics, checkpointed),
        working,
    )


def _gradients(numerics: Numerics) -> int:
    """Return the bytes of gradients for each token and unit of width at the start of an MLP's backward.

    They are the gradients of its hidden layer before and after the activation, and two of the residual stream.
    """
    return 2 * MLP_RATIO * numerics.half + 2 * FULL


def _spatial_token(sizes: Sizes, length: int, numerics: Numerics) -> float:
    """Return the bytes of one token in a block of encoder or decoder."""
    half = numerics.half
    inputs = 2 * (FULL + half)  # the residual at each norm, and the norm's output for a product
    products = half * (3 + 1 + 2 * MLP_RATIO)  # qkv or copies of them, mixed values, MLP before and after GELU
    unit = MASK if numerics.fused else half  # CPUs keep dropout's masks as numbers
    masks = unit * (2 + MLP_RATIO) if sizes.dropout else 0
    attention = _attention(sizes.heads, length, numerics, sizes.dropout)
    return sizes.width * (inputs + products + masks) + attention + 2 * STATISTICS


def _attention(heads: int, length: int, numerics: Numerics, dropout: bool) -> float:
    """Return the bytes that one token's attention scores keep.

    Fused attention keeps one logarithm of a sum for each head. Plain attention keeps the scores and, with dropout, also
    its mask and its result.
    """
    if numerics.fused:
        return FULL * heads
    return heads * length * numerics.half * (3 if dropout else 1)


def _head_token(sizes: Sizes, numerics: Numerics) -> float:
    """Return the bytes of one slot in a block of the head."""
    half = numerics.half
    condition = half * 6 + (half if numerics.bf16 else 0)  # modulation and, in bf16, a copy of its input in each block
    modulated = 2 * (FULL + FULL + half + half)  # the residual, its norm, 1 + scale, and a product's input
    products = half * (3 + 1 + 1 + 2 * MLP_RATIO + 1)  # qkv, mixed values, out, MLP, its result
    attention = half * 2 if numerics.fused else half * 3  # normalised queries and keys; CPUs copy the values too
    widened = 2 * FULL if numerics.fused and numerics.bf16 else 0  # queries and keys for their norms
    norms = 2 * STATISTICS + 2 * STATISTICS * sizes.head_heads
    scores = _attention(sizes.head_heads, sizes.slots, numerics, dropout=False)
    return sizes.head_width * (condition + modulated + products + attention + widened) + norms + scores


def _around_encoder(sizes: Sizes, short: int, numerics: Numerics) -> float:
    """Return the bytes around the encoder's blocks.

    They are the input tokens, the norms before and after the blocks, the linear layer to the decoder, and indices.
    """
    tokens = sizes.positions * sizes.dimensions * numerics.half
    norms = 2 * short * (FULL * sizes.width + STATISTICS)
    return tokens + norms + short * sizes.width * numerics.half + sizes.positions * INDEX


def _around_head(sizes: Sizes, masked: int, numerics: Numerics, checkpointed: bool) -> float:
    """Return the bytes around the head's blocks: the condition, the last norms, the predictions and the targets.

    With checkpointing only the condition counts. The rest is freed before the first block is computed again.
    """
    half = numerics.half
    start = masked * (sizes.slots * sizes.head_width * FULL + sizes.width * half + INDEX)
    if checkpointed:
        return start
    condition = half if numerics.bf16 else FULL  # a bf16 copy for the last modulation, or the one that all blocks share
    units = condition + 3 * FULL + 2 * half  # both norms, their result, 1 + scale, and what the tables are applied to
    slot = sizes.head_width * units + 2 * STATISTICS + FULL * sizes.classes + 2 * INDEX
    return start + masked * sizes.slots * slot
