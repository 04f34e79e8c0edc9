"""What the released model computed, and our model of its weights, imported and loaded as a user would."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.checkout import CHECKOUT
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.exchange.tokenbridge_checkpoint import CheckpointSettings, import_tokenbridge
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

FILE = CHECKOUT / "tests/assets" / "tokenbridge_tiny.safetensors"
SETTINGS = CheckpointSettings(
    heads=4,
    image_size=32,
    vae_stride=8,
    patch_size=1,
    range=5.0,
    latent_scale=0.2325,
    dimension_order=tuple(load_file(FILE)["input.dimension_order"].tolist()),
)


@dataclass(frozen=True)
class Golden:
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    model: TokenBridgeTransformer
    quantizer: DimensionwiseQuantizer


def write_vae(folder: Path, dimensions: int = 16, stride: int = 8) -> Path:
    """A VAE of random weights; by default with the stride and the dimensions that the golden model was made for."""
    torch.manual_seed(0)
    levels = stride.bit_length()
    AutoencoderKL(
        latent_channels=dimensions,
        block_out_channels=(8,) * levels,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        mid_block_add_attention=False,
    ).save_pretrained(folder)
    return folder


def released_weights() -> dict[str, Tensor]:
    """A state dict of the released code."""
    return group("weights.")


def write_released(folder: Path) -> Path:
    file = folder / "released.safetensors"
    save_file(released_weights(), file)
    return file


def group(prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): tensor for n, tensor in load_file(FILE).items() if n.startswith(prefix)}


def load_golden(folder: Path) -> Golden:
    import_tokenbridge(write_released(folder), folder / "imported", write_vae(folder / "vae"), SETTINGS)
    pipeline = TokenBridgePipeline.from_pretrained(folder / "imported")
    return Golden(group("input."), group("expected."), pipeline.transformer.eval(), pipeline.quantizer)
