"""The sizes that every formula of a plan needs, and the models that have them, on the meta device."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import nn

from tokenbridge.config import Config, ModelConfig
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.exchange.kl16 import build_kl16
from tokenbridge.training.trainer import NOT_MODEL_ARGUMENTS
from tokenbridge.vae.training import build_vae


@dataclass(frozen=True)
class Sizes:
    """The sizes of one model and of the tokens that it processes."""

    positions: int  # S
    dimensions: int  # C
    classes: int  # J, for each prediction of the head
    slots: int  # G, predictions of the head for each position
    buffer: int  # P
    width: int  # D
    heads: int
    encoder_depth: int
    decoder_depth: int
    head_width: int  # W
    head_heads: int
    head_depth: int
    autoregressive: bool  # whether the head is
    dropout: bool

    @classmethod
    def of(cls, config: Config, model: ModelConfig) -> "Sizes":
        return cls(
            positions=grid_side(config) ** 2,
            dimensions=config.dimensions,
            classes=config.quantizer.levels**model.head_group,
            slots=config.dimensions // model.head_group,
            buffer=model.buffer_size,
            width=model.width,
            heads=model.heads,
            encoder_depth=model.encoder_depth,
            decoder_depth=model.decoder_depth,
            head_width=model.head_width,
            head_heads=model.head_heads,
            head_depth=model.head_depth,
            autoregressive=model.head == "autoregressive",
            dropout=model.dropout > 0,
        )


def grid_side(config: Config) -> int:
    """Return the number of positions along one side of an image."""
    return config.data.image_size // config.stride


def fresh_model(config: Config, model: ModelConfig) -> TokenBridgeTransformer:
    """Build the model that a training of ``model`` starts with, on torch's current device."""
    return TokenBridgeTransformer(
        grid_height=grid_side(config),
        grid_width=grid_side(config),
        dimensions=config.dimensions,
        levels=config.quantizer.levels,
        num_classes=config.data.num_classes,
        **{name: value for name, value in vars(model).items() if name not in NOT_MODEL_ARGUMENTS},
    )


def meta_model(config: Config, model: ModelConfig) -> TokenBridgeTransformer:
    """Build the same model on the meta device, without its weights."""
    with torch.device("meta"):
        return fresh_model(config, model)


def meta_vae(config: Config) -> AutoencoderKL:
    """Build the VAE on the meta device, without its weights; a pretrained VAE is assumed to be a KL-16."""
    with torch.device("meta"):
        return build_vae(config.vae, config.data.image_size) if config.vae.pretrained is None else build_kl16(config)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    encoder: int
    decoder: int
    head: int
    rest: int  # embeddings, positions
    block: int  # of the largest repeated block
    outside_blocks: int

    @property
    def total(self) -> int:
        return self.encoder + self.decoder + self.head + self.rest

    @classmethod
    def of(cls, model: TokenBridgeTransformer) -> "Parameters":
        blocks = [count(block) for part in (model.encoder, model.decoder, model.head.blocks) for block in part]
        encoder, decoder, head, total = (count(part) for part in (model.encoder, model.decoder, model.head, model))
        rest = total - encoder - decoder - head
        return cls(encoder, decoder, head, rest, max(blocks), total - sum(blocks))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
