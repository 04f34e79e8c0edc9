"""The real models of a plan on the meta device, where tensors have shapes and types but no memory."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from tokenbridge.config import Config, ModelConfig
from tokenbridge.config.model import Trunk
from tokenbridge.model import AutoregressiveModel, make_model
from tokenbridge.ops.exchange.kl16 import build_kl16
from tokenbridge.training.trainer import NOT_MODEL_ARGUMENTS
from tokenbridge.vae.training import build_vae

FULL = 4  # bytes of a float32
Cost = TypeVar("Cost", bound=Any)


def grid_side(config: Config) -> int:
    """Return the number of positions along one side of an image."""
    return config.data.image_size // config.stride


def fresh_model(config: Config, model: ModelConfig) -> AutoregressiveModel:
    """Build the model that a training of ``model`` starts with, on torch's current device."""
    return make_model(model.trunk, **model_arguments(config, model))


def model_arguments(config: Config, model: ModelConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if name not in NOT_MODEL_ARGUMENTS} | {
        "grid_height": grid_side(config),
        "grid_width": grid_side(config),
        "dimensions": config.dimensions,
        "levels": config.quantizer.classes,
        "slots": config.quantizer.slots(config.dimensions),
        "num_classes": config.data.num_classes,
    }


def meta_model(config: Config, model: ModelConfig) -> AutoregressiveModel:
    """Return the same model on the meta device, without its weights. Equal settings share one, and what it costs."""
    return _meta_model(model.trunk, **model_arguments(config, model))


@cache
def _meta_model(trunk: Trunk, **arguments: Any) -> AutoregressiveModel:
    with torch.device("meta"):
        return make_model(trunk, **arguments)


def meta_vae(config: Config) -> AutoencoderKL:
    """Build the VAE on the meta device, without its weights; a pretrained VAE is assumed to be a KL-16."""
    with torch.device("meta"):
        return build_vae(config.vae, config.data.image_size) if config.vae.pretrained is None else build_kl16(config)


@cache
def shallow(model: AutoregressiveModel, depth: int) -> AutoregressiveModel:
    """Build the same model with ``depth`` blocks in each part."""
    depths = {"encoder_depth": depth, "decoder_depth": depth, "head_depth": depth}
    with torch.device(model.device):
        return type(model).from_config(model.config, **depths).train()


def deepened(model: AutoregressiveModel, measure: Callable[[AutoregressiveModel], Cost]) -> Cost:
    """Return what ``measure`` finds for ``model``, from models with depths of one and of two in each part.

    Blocks of a part are alike, so each further one adds the same. The whole model would take ten times as long.

    Args:
        measure: returns a dataclass. Blocks of a part add only to the fields whose names begin with the part's.
    """
    first, second = shallow(model, 1), shallow(model, 2)
    measured = measure(second)
    one, two = asdict(measure(first)), asdict(measured)
    further = {"head": model.config.head_depth - 2}
    for part in ("encoder", "decoder"):  # of a causal trunk, the first is empty
        whole, less, least = (len(getattr(each, part)) for each in (model, second, first))
        further[part] = (whole - less) / max(1, less - least)
    depths = {name: further.get(name.partition("_")[0], 0) for name in two}
    return type(measured)(**{name: two[name] + depth * (two[name] - one[name]) for name, depth in depths.items()})


def step_inputs(model: AutoregressiveModel, images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return values, tokens, labels and order of a training step, on the model's device; all are zeros."""
    with torch.device(model.device):
        values = torch.zeros(images, model.positions, model.config.dimensions)
        labels, order = (torch.zeros(*shape, dtype=torch.long) for shape in ((images,), (images, model.units)))
        return values, zero_tokens(model, images, model.units).view(images, model.positions, -1), labels, order


def zero_tokens(model: AutoregressiveModel, *shape: int) -> Tensor:
    """Return zeros for units of the model, in the given shape and the numbers of a unit."""
    return torch.zeros(*shape, model.unit_slots, dtype=torch.float32 if model.config.levels is None else torch.long)


def loss_uniforms(model: AutoregressiveModel, images: int) -> Tensor:
    """Return zeros in place of the random numbers of the head's loss, [N, S, R]."""
    return torch.zeros(images, model.units, model.head.loss_numbers, device=model.device)


def head_inputs(model: AutoregressiveModel, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, tokens and uniforms of ``rows`` positions for the head's loss; all are zeros."""
    with torch.device(model.device):
        z, uniforms = torch.zeros(rows, model.config.width), torch.zeros(rows, model.head.loss_numbers)
        return z, zero_tokens(model, rows), uniforms


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
    def of(cls, model: AutoregressiveModel) -> "Parameters":
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
