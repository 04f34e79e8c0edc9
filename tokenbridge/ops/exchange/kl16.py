"""MAR's KL-16, an LDM-style autoencoder, as a diffusers ``AutoencoderKL`` folder."""

import re
from pathlib import Path

from diffusers import AutoencoderKL

from tokenbridge.base.files import new_folder
from tokenbridge.base.loading import read_weights, tensors_by_name, unwrapped
from tokenbridge.config import Config
from tokenbridge.ops.exchange.weights import fill

LOSS = "loss."  # the discriminator and the rest of the training loss
RENAMED = (  # regular expressions, from diffusers' names to LDM's, applied in turn
    (r"\.down_blocks\.(\d+)\.", r".down.\1."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.group_norm\.", ".norm."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def import_vae(checkpoint: Path, out: Path, config: Config) -> None:
    """Write ``checkpoint`` (kl16.ckpt: {"model": tensors}, or the tensors alone) as the folder ``out``.

    Args:
        config: the settings of an experiment with this VAE, such as imagenet_l.

    Raises:
        UserError: if ``out`` exists, or the checkpoint does not hold exactly this VAE.
    """
    with new_folder(out) as target:
        content = unwrapped(read_weights(checkpoint))
        tensors = tensors_by_name(content.get("model", content), str(checkpoint))
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(LOSS)}
        vae = build_kl16(config)
        fill(vae, weights, lambda name: [released_name(name, len(config.vae.block_widths))])
        vae.save_pretrained(target)


def build_kl16(config: Config) -> AutoencoderKL:
    """Build KL-16 with fresh weights.

    The encoder has attention at its lowest resolution and in its middle, the decoder in its middle only.
    """
    depth = len(config.vae.block_widths)
    return AutoencoderKL(
        latent_channels=config.vae.dimensions,
        block_out_channels=tuple(config.vae.block_widths),
        layers_per_block=config.vae.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * (depth - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",) * depth,
        sample_size=config.data.image_size,
        scaling_factor=1 / config.quantizer.fixed_scale,  # for users of diffusers; here the quantizer normalises
        force_upcast=False,
    )


def released_name(name: str, depth: int) -> str:
    """Return LDM's name of a diffusers VAE tensor; LDM counts the decoder's ``depth`` levels from the image side."""
    name = re.sub(r"\.up_blocks\.(\d+)\.", lambda match: f".up.{depth - 1 - int(match[1])}.", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d+)\.", lambda match: f".mid.block_{int(match[1]) + 1}.", name)
    for ours, theirs in RENAMED:
        name = re.sub(ours, theirs, name)
    return name
