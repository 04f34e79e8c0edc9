"""The baseline of the benchmarks: the same model, weights and draws, computed as the released code does.

No key-value cache, no shared work, every position through every block, all positions of the head at once, and a
distance to every level. The functions take our modules, so that both sides have the same weights and must give the same
results.

Shapes: N images, S positions, C dimensions, B levels, M positions of any number of images, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenbridge.config.model import SamplingSettings
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.model.head import DimensionHead, HeadBlock, SlotAttention
from tokenbridge.model.layers import Attention, Block, gather
from tokenbridge.model.schedule import masked_counts
from tokenbridge.model.transformer import split_order
from tokenbridge.sampling.sampler import Draws, choose_levels, guidance_at
from tokenbridge.tokenizer.latents import Quantizer


def attention(module: Attention, x: Tensor) -> Tensor:
    q, k, v = module.qkv(x).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)
    return module.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        assert isinstance(block, Block)
        x = x + attention(block.attention, block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    return x


def features(model: TokenBridgeTransformer, values: Tensor, labels: Tensor, visible: Tensor) -> Tensor:
    """Return z [N, S, D] of every position."""
    x = model.token_in(values)
    classes = model._embed_labels(labels)[:, None].expand(-1, model.buffer_size, -1)
    x = model.encoder_in_norm(torch.cat([classes, x], dim=1) + model.encoder_position)
    buffer = torch.arange(model.buffer_size).expand(len(x), -1)
    seen = torch.cat([buffer, model.buffer_size + visible], dim=1)
    x = gather(x, seen)
    x = run(model.encoder, x)
    x = model.decoder_in(model.encoder_norm(x))
    full = model.mask_token.expand(len(x), model.buffer_size + model.positions, -1)
    x = full.scatter(1, seen[..., None].expand_as(x), x) + model.decoder_position
    x = run(model.decoder, x)
    return model.decoder_norm(x)[:, model.buffer_size :] + model.output_position


def slot_attention(module: SlotAttention, x: Tensor) -> Tensor:
    q, k, v = module.qkv(x).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(module.q_norm(q), module.k_norm(k), v, is_causal=True)
    return module.out(mixed.transpose(1, 2).flatten(2))


def head_block(block: HeadBlock, x: Tensor, condition: Tensor) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(F.silu(condition)).chunk(6, dim=-1)
    x = x + gate1 * slot_attention(block.attention, block.norm1(x) * (1 + scale1) + shift1)
    return x + gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2)


def head_features(head: DimensionHead, c: Tensor, known: Tensor) -> Tensor:
    """Return the head's features [M, i, D] of the first i slots, from the condition and the i - 1 known levels."""
    slots = known.shape[1] + 1
    assert head.modulation_embedding is not None
    x = torch.cat([c[:, None], head.level_embedding(known + head.offsets[: slots - 1])], dim=1)
    x = x + head.slot_embedding[:, :slots]
    condition = c[:, None] + head.modulation_embedding[:, :slots]
    for block in head.blocks:
        assert isinstance(block, HeadBlock)
        x = head_block(block, x, condition)
    scale, shift = head.final_modulation(F.silu(condition)).chunk(2, dim=-1)
    return head.final_norm(head.norm(x)) * (1 + scale) + shift


def logits(head: DimensionHead, z: Tensor, tokens: Tensor) -> Tensor:
    """Return the logits [M, C, B], teacher-forced by tokens [M, C] in head order."""
    x = head_features(head, head.condition(z), tokens[:, :-1])
    tables = zip(x.unbind(1), head.output_weight, head.output_bias, strict=True)
    return torch.stack([F.linear(*each) for each in tables], dim=1)


def head_sample(head: DimensionHead, z: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Return tokens [M, C] in head order; each slot computes all slots before it again."""
    c, chosen = head.condition(z), torch.empty(len(z), 0, dtype=torch.long)
    for i in range(head.slots):
        x = head_features(head, c, chosen)[:, -1]
        level = choose_levels(F.linear(x, head.output_weight[i], head.output_bias[i]), uniforms[:, i], temperature)
        chosen = torch.cat([chosen, level[:, None]], dim=1)
    return chosen


def dimension_head(model: TokenBridgeTransformer) -> DimensionHead:
    assert isinstance(model.head, DimensionHead), "only its models are measured"
    return model.head


@torch.no_grad()
def sample_tokens(
    model: TokenBridgeTransformer,
    quantizer: Quantizer,
    labels: Tensor,
    draws: Draws,
    settings: SamplingSettings,
) -> Tensor:
    """Return tokens [N, S, C], dimensions in natural order."""
    tokens, order = torch.zeros_like(draws.uniforms, dtype=torch.long), draws.order
    before = model.positions
    for after in masked_counts(model.positions, settings.steps_for(model.trunk, model.positions)):
        _, visible = split_order(order, before)
        values = quantizer.decode(quantizer.from_head_order(tokens))
        scale = guidance_at(settings, model.positions, before, after)
        if scale == 1:
            z = features(model, values, labels, visible)
        else:
            both = torch.cat([labels, torch.full_like(labels, model.num_classes)])
            doubled = features(model, values.repeat(2, 1, 1), both, visible.repeat(2, 1))
            conditional, unconditional = doubled.chunk(2)
            z = unconditional + scale * (conditional - unconditional)
        drawn_at = order[:, after:before]
        flat_z, uniforms = (gather(x, drawn_at).flatten(0, 1) for x in (z, draws.uniforms))
        drawn = head_sample(dimension_head(model), flat_z, uniforms, settings.temperature).view(*drawn_at.shape, -1)
        tokens.scatter_(1, drawn_at[..., None].expand_as(drawn), drawn)
        before = after
    return quantizer.from_head_order(tokens)


def loss(
    model: TokenBridgeTransformer, values: Tensor, tokens: Tensor, labels: Tensor, order: Tensor, num_masked: int
) -> Tensor:
    """Return the mean cross-entropy, as ``TokenBridgeTransformer.forward`` does."""
    masked, visible = split_order(order, num_masked)
    z, known = (gather(x, masked).flatten(0, 1) for x in (features(model, values, labels, visible), tokens))
    return F.cross_entropy(logits(dimension_head(model), z, known).flatten(0, 1), known.flatten())


def quantize(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest level of values [..., C], by the distance to every level [C, B]."""
    return (values[..., None] - levels).abs().argmin(-1)


def dequantize(tokens: Tensor, levels: Tensor) -> Tensor:
    """Return the levels [C, B] of tokens [..., C]."""
    return levels.expand(*tokens.shape, -1).gather(-1, tokens[..., None])[..., 0]


def update_average(averages: list[Tensor], parameters: list[nn.Parameter], decay: float) -> None:
    for average, parameter in zip(averages, parameters, strict=True):
        average.mul_(decay).add_(parameter.detach(), alpha=1 - decay)
