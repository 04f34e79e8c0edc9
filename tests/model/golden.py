"""The released model's weights under our names, and what it computed with them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.quantizer import DimensionwiseQuantizer

GOLDEN = Path(__file__).parent.parent / "assets" / "tokenbridge_tiny.safetensors"
DERIVED = ("channel_mask", "reconstruction_values", "boundaries")  # buffers, recomputed here
RENAMED = (  # applied in turn
    ("class_emb.", "class_embedding."),
    ("fake_latent", "no_class"),
    ("z_proj_ln", "encoder_in_norm"),
    ("z_proj", "token_in"),
    ("encoder_pos_embed_learned", "encoder_position"),
    ("decoder_pos_embed_learned", "decoder_position"),
    ("encoder_blocks", "encoder"),
    ("decoder_blocks", "decoder"),
    ("decoder_embed", "decoder_in"),
    ("output_pos_embed", "output_position"),
    ("condition_proj", "head.condition"),
    ("channel_embed", "head.slot_embedding"),
    ("timesteps_embeddings", "head.modulation_embedding"),
    ("channel_blocks", "head.blocks"),
    ("channel_norm", "head.norm"),
    ("channel_final.adaLN_modulation.1", "head.final_modulation"),
    ("adaLN_modulation.1", "modulation"),
    ("attn.proj", "attention.out"),
    ("attn.", "attention."),
    ("mlp.fc1", "mlp.expand"),
    ("mlp.fc2", "mlp.contract"),
)


@dataclass(frozen=True)
class Golden:
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    model: TokenBridgeTransformer
    quantizer: DimensionwiseQuantizer


def our_name(name: str) -> str:
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name


def stacked(weights: dict[str, Tensor], pattern: str, count: int) -> list[Tensor]:
    return [weights.pop(pattern.format(i)) for i in range(count)]


def load_golden() -> Golden:
    with safe_open(GOLDEN, "pt") as file:
        settings = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "input": {}, "expected": {}}
    for name, tensor in tensors.items():
        group, rest = name.split(".", 1)
        groups[group][rest] = tensor
    weights, dimensions = groups["weights"], settings["vae_embed_dim"]
    levels = weights["reconstruction_values"] * (settings["quant_max"] / 3)
    tables = {
        "head.level_embedding.weight": torch.cat(stacked(weights, "token_embeddings.{}.weight", dimensions - 1)),
        "head.output_weight": torch.stack(stacked(weights, "channel_heads.{}.weight", dimensions)),
        "head.output_bias": torch.stack(stacked(weights, "channel_heads.{}.bias", dimensions)),
    }
    model = TokenBridgeTransformer(
        grid_height=settings["img_size"] // settings["vae_stride"],
        grid_width=settings["img_size"] // settings["vae_stride"],
        dimensions=dimensions,
        levels=settings["quant_levels"],
        num_classes=settings["class_num"],
        width=settings["encoder_embed_dim"],
        encoder_depth=settings["encoder_depth"],
        decoder_depth=settings["decoder_depth"],
        heads=settings["encoder_num_heads"],
        head_width=settings["channel_embed_dim"],
        head_depth=settings["channel_depth"],
        head_heads=settings["channel_heads"],
        buffer_size=settings["buffer_size"],
    ).eval()
    renamed = {our_name(name): tensor for name, tensor in weights.items() if name not in DERIVED}
    model.load_state_dict(renamed | tables, strict=True)
    quantizer = DimensionwiseQuantizer.build(
        torch.zeros(dimensions),
        torch.ones(dimensions),
        levels.expand(dimensions, -1),
        groups["input"]["dimension_order"],
    )
    return Golden(groups["input"], groups["expected"], model, quantizer)
