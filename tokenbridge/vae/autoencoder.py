"""The VAE as the rest of the project uses it: images -> moments, and latents -> images.

Shapes: N images, C dimensions, H x W pixels, h x w positions.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tokenbridge.base.loading import load_whole


def load_vae(folder: Path) -> AutoencoderKL:
    """Load a diffusers AutoencoderKL folder, in eval mode.

    Raises:
        LoadError: if the folder or a tensor is missing, or a tensor is left over.
    """
    return load_whole(AutoencoderKL, folder).eval()


def to_unit_range(images: np.ndarray) -> Tensor:
    """Convert uint8 [N, 3, H, W] to float32 in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1


def to_bytes(images: Tensor) -> np.ndarray:
    """Convert float in [-1, 1] to uint8, rounded as in MAR: round(clip(255 x)) for x in [0, 1]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Return the posterior mean and log-variance [N, 2C, h, w], float32, unnormalised, of uint8 images [N, 3, H, W]."""
    posterior = vae.encode(to_unit_range(images).to(vae.device, vae.dtype)).latent_dist
    return posterior.parameters.float()


@torch.no_grad()
def decode_images(vae: AutoencoderKL, vae_latents: Tensor) -> np.ndarray:
    """Return uint8 images [N, 3, H, W] of latents [N, C, h, w] in the VAE's own units."""
    return to_bytes(vae.decode(vae_latents.to(vae.device, vae.dtype)).sample)
