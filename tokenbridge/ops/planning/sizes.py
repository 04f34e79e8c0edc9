"""The real models of a plan on the meta device, where tensors have shapes and types but no memory."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from tokenbridge.config import Config, ModelConfig
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.exchange.kl16 import build_kl16
from tokenbridge.training.trainer import NOT_MODEL_ARGUMENTS
from tokenbridge.vae.training import build_vae

FULL = 4  # bytes of a float32
Cost = TypeVar("Cost", bound=Any)


def grid_side(config: Config) -> int:
    """Return the number of positions along one side of an image."""
    return config.data.image_size // config.stride


def fresh_model(config: Config, model: ModelConfig) -> TokenBridgeTransformer:
    """Build the model that a training of ``model`` starts with, on torch's current device."""
    return TokenBridgeTransformer(**model_arguments(config, model))


def model_arguments(config: Config, model: ModelConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if name not in NOT_MODEL_ARGUMENTS} | {
        "grid_height": grid_side(config),
        "grid_width": grid_side(config),
        "dimensions": config.dimensions,
        "levels": config.quantizer.classes,
        "slots": config.quantizer.slots(config.dimensions),
        "num_classes": config.data.num_classes,
    }


def meta_model(config: Config, model: ModelConfig) -> TokenBridgeTransformer:
    """Return the same model on the meta device, without its weights. Equal settings share one, and what it costs."""
    return _meta_model(**model_arguments(config, model))


@cache
def _meta_model(**arguments: Any) -> TokenBridgeTransformer:
    with torch.device("meta"):
        return TokenBridgeTransformer(**arguments)


def meta_vae(config: Config) -> AutoencoderKL:
    """Build the VAE on the meta device, without its weights; a pretrained VAE is assumed to be a KL-16."""
    with torch.device("meta"):
        return build_vae(config.vae, config.data.image_size) if config.vae.pretrained is None else build_kl16(config)


@cache
def shallow(model: TokenBridgeTransformer, depth: int) -> TokenBridgeTransformer:
    """Build the same model with ``depth`` blocks in each part."""
    depths = {"encoder_depth": depth, "decoder_depth": depth, "head_depth": depth}
    with torch.device(model.device):
        return TokenBridgeTransformer.from_config(model.config, **depths).train()


def deepened(model: TokenBridgeTransformer, measure: Callable[[TokenBridgeTransformer], Cost]) -> Cost:
    """Return what ``measure`` finds for ``model``, from models with one and with two blocks in each part.

    Blocks of a part are alike, so each further one adds the same. The whole model would take ten times as long.

    Args:
        measure: returns a dataclass. Blocks of a part add only to the fields whose names begin with the part's.
    """
    sizes = model.config
    depths = {"encoder": sizes.encoder_depth, "decoder": sizes.decoder_depth, "head": sizes.head_depth}
    first, second = (measure(shallow(model, depth)) for depth in (1, 2))
    further = {name: depths.get(name.partition("_")[0], 2) - 2 for name in asdict(second)}
    one, two = asdict(first), asdict(second)
    return type(second)(**{name: two[name] + blocks * (two[name] - one[name]) for name, blocks in further.items()})


def step_inputs(model: TokenBridgeTransformer, images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return values, tokens, labels and order of a training step, on the model's device; all are zeros."""
    with torch.device(model.device):
        values = torch.zeros(images, model.positions, model.config.dimensions)
        return values, tokens_like(model, values), torch.zeros(images, dtype=torch.long), values[..., 0].long()


def tokens_like(model: TokenBridgeTransformer, values: Tensor) -> Tensor:
    """Return zero tokens [..., G] of the model's kind for values [..., C]."""
    if model.config.levels is None:
        return values
    slots = model.config.slots or model.config.dimensions
    return values.new_zeros(*values.shape[:-1], slots, dtype=torch.long)


def loss_uniforms(model: TokenBridgeTransformer, images: int) -> Tensor:
    """Return zeros in place of the random numbers of the head's loss, [N, S, R]."""
    return torch.zeros(images, model.positions, model.head.loss_numbers, device=model.device)


def head_inputs(model: TokenBridgeTransformer, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, tokens and uniforms of ``rows`` positions for the head's loss; all are zeros."""
    with torch.device(model.device):
        tokens = tokens_like(model, torch.zeros(rows, model.config.dimensions))
        return torch.zeros(rows, model.config.width), tokens, torch.zeros(rows, model.head.loss_numbers)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    encoder: int
    decoder: int
    head: int  # with the draft
    rest: int  # embeddings, positions
    block: int  # of the largest repeated block
    outside_blocks: int

    @property
    def total(self) -> int:
        return self.encoder + self.decoder + self.head + self.rest

    @classmethod
    def of(cls, model: TokenBridgeTransformer) -> "Parameters":
        blocks = [
            count(block)
            for part in (model.encoder, model.decoder, *(head.blocks for head in model.heads))
            for block in part
        ]
        encoder, decoder, total = (count(part) for part in (model.encoder, model.decoder, model))
        head = sum(map(count, model.heads))
        return cls(encoder, decoder, head, total - encoder - decoder - head, max(blocks), total - sum(blocks))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
