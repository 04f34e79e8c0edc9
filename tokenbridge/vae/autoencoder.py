"""The VAE as the rest of the project uses it: images -> moments, and latents -> images.

Shapes: N images, C dimensions, H x W pixels, h x w positions.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tokenbridge.base.finite import check_finite
from tokenbridge.base.loading import load_whole
from tokenbridge.base.slices import slices


def load_vae(folder: Path) -> AutoencoderKL:
    """Load a diffusers AutoencoderKL folder, in eval mode.

    Raises:
        LoadError: as ``load_whole``.
    """
    return load_whole(AutoencoderKL, folder).eval()


def to_unit_range(images: np.ndarray) -> Tensor:
    """Convert uint8 [N, 3, H, W] to float32 in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1


def to_bytes(images: Tensor) -> np.ndarray:
    """Convert float in [-1, 1] to uint8, rounded as in MAR: round(clip(255 x)) for x in [0, 1]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def stride(vae: AutoencoderKL) -> int:
    """Return the number of pixels for each position of the latents, along one side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def held_values(vae: AutoencoderKL, height: int, width: int) -> int:
    """Return a bound on the numbers that exist at once while one image [3, H, W] is encoded or decoded.

    The peak is at full resolution: up to six tensors of the first block's width, or three of the second block's.
    """
    widths = list(vae.config.block_out_channels[:2])
    return int(max(6 * widths[0], 3 * widths[-1])) * height * width


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Return the posterior mean and log-variance [N, 2C, h, w], float32, unnormalised, of uint8 images [N, 3, H, W].

    Raises:
        NotFiniteError: if one of them is NaN or infinite.
    """
    parts = (images[part] for part in slices(len(images), held_values(vae, *images.shape[-2:])))
    pixels = (to_unit_range(part).to(vae.device, vae.dtype) for part in parts)
    moments = torch.cat([vae.encode(part).latent_dist.parameters.float() for part in pixels])
    check_finite("the VAE's moments of images", moments, vae)
    return moments


@torch.no_grad()
def decode_images(vae: AutoencoderKL, vae_latents: Tensor) -> np.ndarray:
    """Return uint8 images [N, 3, H, W] of latents [N, C, h, w] in the VAE's own units.

    Raises:
        NotFiniteError: if a pixel is NaN or infinite.
    """
    height, width = (stride(vae) * side for side in vae_latents.shape[-2:])
    images = []
    for part in (vae_latents[each] for each in slices(len(vae_latents), held_values(vae, height, width))):
        pixels = vae.decode(part.to(vae.device, vae.dtype)).sample
        check_finite("the VAE's pixels", pixels, vae, inputs=part)
        images.append(to_bytes(pixels))
    return np.concatenate(images)
