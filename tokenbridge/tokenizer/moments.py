"""Moments on disk: the VAE's posterior of every training image, encoded once and then read by memory map.

Shapes: N images, F flips (1, or 2 with the mirrored image), C dimensions, h x w positions.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenbridge.base.arrays import LabelledArrays
from tokenbridge.base.seeding import generator


class Moments:
    """Random access to a folder of shards [n, F, 2C, h, w] float16.

    Raises:
        ArraysError: if files or rows are missing.
    """

    def __init__(self, folder: Path) -> None:
        self._arrays = LabelledArrays(folder, "encode")
        self.flips, channels, self.height, self.width = self._arrays.row_shape
        self.dimensions = channels // 2
        self.labels = self._arrays.labels
        self.num_classes: int = self._arrays.manifest["num_classes"]

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, indices: Tensor, flips: Tensor | None = None) -> Tensor:
        """Return the moments [n, 2C, h, w], float32, of images ``indices`` [n].

        Args:
            flips: [n]; 1 selects the moments of the mirrored image, if they are stored. None: no image is mirrored.
        """
        index = indices.numpy()
        flip = np.zeros_like(index) if flips is None else flips.numpy() % self.flips
        return torch.from_numpy(self._arrays.read(index, flip)).float()


def sample_posterior(moments: Tensor, noise: Tensor | None = None) -> Tensor:
    """Return VAE latents [n, C, h, w] of moments [n, 2C, h, w]: mean + std * noise, or the mean without noise."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean if noise is None else mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise


def fitting_latents(moments: Moments, images: int, seed: int) -> Tensor:
    """Return posterior samples [n, C, h, w], in VAE units, of ``images`` images drawn without replacement."""
    indices = torch.randperm(len(moments), generator=generator(seed, "fit images"))[:images]
    posterior = moments.read(indices)
    noise = torch.randn(posterior[:, : moments.dimensions].shape, generator=generator(seed, "fit noise"))
    return sample_posterior(posterior, noise)
