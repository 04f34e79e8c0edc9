"""Import of checkpoints of the released TokenBridge code as pipeline folders."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tokenbridge.base.files import new_folder
from tokenbridge.base.loading import read_weights, tensors_by_name, unwrapped
from tokenbridge.config import Config
from tokenbridge.config.types import Count, Positive, PositiveNumber, Settings
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.exchange.weights import ImportFailedError, fill
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.levels import gaussian_levels, stretch
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.vae.autoencoder import load_vae, stride

WEIGHTS = {"ema": ("model_ema", "ema"), "raw": ("model",)}  # which of a checkpoint's weights, and their keys in it
LEVELS = "reconstruction_values"  # level values in [-3, 3]
BUFFERS = (LEVELS, "boundaries", "channel_mask")  # derived by the released code; our model has no such tensors
RENAMED = {  # regular expressions, from our names to the released ones, applied in turn
    r"^class_embedding\.": "class_emb.",
    r"^no_class": "fake_latent",
    r"^token_in\.": "z_proj.",
    r"^encoder_position": "encoder_pos_embed_learned",
    r"^encoder_in_norm\.": "z_proj_ln.",
    r"^encoder\.": "encoder_blocks.",
    r"^decoder_in\.": "decoder_embed.",
    r"^decoder_position": "decoder_pos_embed_learned",
    r"^decoder\.": "decoder_blocks.",
    r"^output_position": "output_pos_embed",
    r"^head\.condition\.": "condition_proj.",
    r"^head\.slot_embedding": "channel_embed",
    r"^head\.modulation_embedding": "timesteps_embeddings",
    r"^head\.blocks\.": "channel_blocks.",
    r"^head\.norm\.": "channel_norm.",
    r"^head\.final_modulation\.": "channel_final.adaLN_modulation.1.",
    r"\.attention\.out\.": ".attn.proj.",
    r"\.attention\.": ".attn.",
    r"\.mlp\.expand\.": ".mlp.fc1.",
    r"\.mlp\.contract\.": ".mlp.fc2.",
    r"\.modulation\.": ".adaLN_modulation.1.",
}
TABLES = {  # one tensor of ours -> one released tensor for each dimension
    "head.level_embedding.weight": "token_embeddings.{}.weight",
    "head.output_weight": "channel_heads.{}.weight",
    "head.output_bias": "channel_heads.{}.bias",
}


class CheckpointSettings(Settings, frozen=True):
    """The settings that the shapes in a checkpoint do not show."""

    heads: Positive  # of the encoder and the decoder
    image_size: Positive  # pixels
    vae_stride: Positive  # pixels for each position of the VAE
    patch_size: Positive  # positions of the VAE for each position of the model
    range: PositiveNumber  # the levels cover scaled latents in [-range, range]
    latent_scale: PositiveNumber  # what the VAE's latents were multiplied by
    dimension_order: tuple[Count, ...]  # the dimension that the head predicts first, second, ...

    @classmethod
    def of(cls, config: Config) -> "CheckpointSettings":
        """Take the settings from an experiment with a released model, such as imagenet_l."""
        (model,) = config.models.values()
        assert config.quantizer.given_order is not None
        return cls(
            heads=model.heads,
            image_size=config.data.image_size,
            vae_stride=2 ** (len(config.vae.block_widths) - 1),
            patch_size=config.quantizer.patch_size,
            range=config.quantizer.range,
            latent_scale=1 / config.quantizer.fixed_scale,
            dimension_order=tuple(config.quantizer.given_order),
        )


def import_tokenbridge(
    checkpoint: Path,
    out: Path,
    vae_folder: Path,
    settings: CheckpointSettings,
    *,
    weights: str = "ema",
    label_names: Path | None = None,
) -> None:
    """Write ``checkpoint`` as the pipeline folder ``out``.

    Args:
        checkpoint: .pth of the released training script, or a bare state dict (.pth, .safetensors).
        vae_folder: the diffusers VAE whose latents the model was trained on.
        weights: "ema" or "raw"; a bare state dict has only one set of weights, which is used in either case.
        label_names: a text file with a class name in each line; None: the numbers are the names.

    Raises:
        UserError: if ``out`` exists, or the checkpoint, the VAE, the settings and the names do not fit together.
    """
    with new_folder(out) as target:
        vae = load_vae(vae_folder)
        tensors = select_weights(read_weights(checkpoint), weights)
        sizes = transformer_sizes(tensors, settings)
        _check_vae(vae, sizes["dimensions"], settings)
        names = _class_names(label_names, sizes["num_classes"])
        quantizer = build_quantizer(tensors, settings)
        TokenBridgePipeline(vae, build_transformer(tensors, sizes), quantizer, names).save_pretrained(target)


def select_weights(content: Mapping[str, Any], which: str) -> dict[str, Tensor]:
    """Return weights and buffers by released name; averaged weights without buffers get the raw model's buffers."""
    content = unwrapped(content)
    if not any(key in content for keys in WEIGHTS.values() for key in keys):
        return tensors_by_name(content, "the checkpoint")
    found = next((key for key in WEIGHTS[which] if key in content), None)
    if found is None:
        raise ImportFailedError(f"the checkpoint has no {WEIGHTS[which][0]}: choose other weights with --weights")
    raw = tensors_by_name(content.get("model", {}), "the checkpoint's model")
    buffers = {name: raw[name] for name in BUFFERS if name in raw}
    return buffers | tensors_by_name(content[found], f"the checkpoint's {found}")


def transformer_sizes(weights: Mapping[str, Tensor], settings: CheckpointSettings) -> dict[str, int]:
    """Return the arguments of ``TokenBridgeTransformer``, from the shapes of ``weights`` where they show them.

    Raises:
        ImportFailedError: if a tensor that shows a size is missing, or a setting does not fit.
    """
    _, positions, _ = _shape(weights, "output_pos_embed", 3)
    width, dimensions = _shape(weights, "z_proj.weight", 2)
    levels, head_width = _shape(weights, "channel_heads.0.weight", 2)
    grid = settings.image_size // (settings.vae_stride * settings.patch_size)
    if grid**2 != positions:
        raise ImportFailedError(
            f"the checkpoint has {positions} positions, but an image of {settings.image_size} pixels at a VAE stride "
            f"of {settings.vae_stride} and a patch size of {settings.patch_size} has {grid} x {grid}: correct these"
        )
    if width % settings.heads:
        raise ImportFailedError(f"{settings.heads} heads cannot share a width of {width}: set --heads to a divisor")
    return {
        "grid_height": grid,
        "grid_width": grid,
        "dimensions": dimensions,
        "levels": levels,
        "num_classes": _shape(weights, "class_emb.weight", 2)[0],
        "width": width,
        "encoder_depth": _depth(weights, "encoder_blocks"),
        "decoder_depth": _depth(weights, "decoder_blocks"),
        "heads": settings.heads,
        "head_width": head_width,
        "head_depth": _depth(weights, "channel_blocks"),
        "head_heads": head_width // _shape(weights, "channel_blocks.0.attn.q_norm.weight", 1)[0],
        "buffer_size": _shape(weights, "encoder_pos_embed_learned", 3)[1] - positions,
    }


def _shape(weights: Mapping[str, Tensor], name: str, axes: int) -> torch.Size:
    if name not in weights:
        raise ImportFailedError(f"the checkpoint has no {name}: is it one of the released TokenBridge code?")
    if len(shape := weights[name].shape) != axes or 0 in shape:
        raise ImportFailedError(f"{name} has shape {list(shape)}: the released code's has {axes} axes, none of size 0")
    return shape


def _depth(weights: Mapping[str, Tensor], blocks: str) -> int:
    return len({match[1] for name in weights if (match := re.match(rf"{blocks}\.(\d+)\.", name))})


def build_transformer(weights: Mapping[str, Tensor], sizes: dict[str, int]) -> TokenBridgeTransformer:
    """Build the model from ``weights``, which have their released names. It samples as the released code does.

    Raises:
        UserError: naming the tensors that are missing, left over, of another shape or not finite.
    """
    try:
        model = TokenBridgeTransformer(**sizes, released_slot0=True).eval()
    except (ValueError, ZeroDivisionError, RuntimeError) as error:  # such as a lack of memory
        raise ImportFailedError(f"the sizes in the checkpoint make no model ({error}): {sizes}") from error
    learned = {name: tensor for name, tensor in weights.items() if name not in BUFFERS}
    fill(model, learned, lambda name: released_names(name, sizes["dimensions"]))
    return model


def released_names(name: str, dimensions: int) -> list[str]:
    """Return the released names for one tensor of our model."""
    if name in TABLES:
        first_has_none = name == "head.level_embedding.weight"  # no level comes before the first dimension
        return [TABLES[name].format(i) for i in range(dimensions - first_has_none)]
    for ours, theirs in RENAMED.items():
        name = re.sub(ours, theirs, name)
    return [name]


def build_quantizer(weights: Mapping[str, Tensor], settings: CheckpointSettings) -> DimensionwiseQuantizer:
    """Build the released quantizer, with the checkpoint's own level values if it has them.

    The checkpoint's values were computed in float32, and differ by 1e-5 from the exact values.
    """
    levels, _ = _shape(weights, "channel_heads.0.weight", 2)
    dimensions = len(settings.dimension_order)
    values = stretch(weights.get(LEVELS, gaussian_levels(levels)), settings.range)
    if values.shape != (levels,):
        raise ImportFailedError(f"{LEVELS} has shape {list(values.shape)}: it should hold {levels} values")
    return DimensionwiseQuantizer.build(
        loc=torch.zeros(dimensions),
        scale=torch.full((dimensions,), 1 / settings.latent_scale),
        levels=values.expand(dimensions, -1),
        dimension_order=torch.tensor(settings.dimension_order),
        patch_size=settings.patch_size,
    )


def _check_vae(vae: AutoencoderKL, dimensions: int, settings: CheckpointSettings) -> None:
    side = stride(vae)
    of_a_token = vae.config.latent_channels * settings.patch_size**2
    if (side, of_a_token) != (settings.vae_stride, dimensions):
        raise ImportFailedError(
            f"the VAE has a stride of {side} and tokens of {of_a_token} dimensions, but the model one of "
            f"{settings.vae_stride} and tokens of {dimensions}: name the VAE that it was trained with, and its stride"
        )
    if len(settings.dimension_order) != dimensions:
        raise ImportFailedError(f"the dimension order names {len(settings.dimension_order)} of {dimensions} dimensions")


def _class_names(file: Path | None, count: int) -> list[str]:
    if file is None:
        return [str(label) for label in range(count)]
    if not file.is_file():
        raise ImportFailedError(f"{file} is missing: write the name of a class in each of its lines")
    try:
        names = file.read_text(encoding="utf-8-sig").splitlines()  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ImportFailedError(f"{file} is no text in UTF-8: save it as UTF-8") from error
    if len(names) != count:
        raise ImportFailedError(f"{file} has {len(names)} lines for {count} classes: name each class in a line")
    return names
