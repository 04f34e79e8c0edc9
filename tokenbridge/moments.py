"""Moments on disk: the VAE's posterior of every training image, encoded once, memory-mapped ever after.

Shapes: N images, F flips (1, or 2 with the mirrored image), C dimensions, h x w positions.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenbridge.errors import UserError
from tokenbridge.files import read_json, write_json
from tokenbridge.seeding import generator

MANIFEST = "manifest.json"
LABELS = "labels.npy"


class MomentsError(UserError):
    """A moments folder that is not whole."""


def shard_name(index: int) -> str:
    return f"moments-{index:05d}.npy"


def write_manifest(folder: Path, labels: np.ndarray, shards: int, num_classes: int) -> None:
    """Complete a folder of shards [n, F, 2C, h, w] float16: labels, then the manifest, which is written last."""
    np.save(folder / LABELS, labels)
    first = np.load(folder / shard_name(0), mmap_mode="r")
    _, flips, channels, height, width = first.shape
    content = {"images": len(labels), "shards": shards, "flips": flips, "dimensions": channels // 2}
    write_json(folder / MANIFEST, content | {"height": height, "width": width, "num_classes": num_classes})


class Moments:
    """Random access to a moments folder; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        if not (folder / MANIFEST).exists():
            raise MomentsError(f"{folder} has no {MANIFEST}: run `dvc repro encode`")
        manifest = read_json(folder / MANIFEST)
        self.dimensions: int = manifest["dimensions"]
        self.height: int = manifest["height"]
        self.width: int = manifest["width"]
        self.num_classes: int = manifest["num_classes"]
        self.labels = torch.from_numpy(np.load(folder / LABELS))
        self._shards = [np.load(folder / shard_name(i), mmap_mode="r") for i in range(manifest["shards"])]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        if self._starts[-1] != manifest["images"]:
            raise MomentsError(
                f"{folder} holds {self._starts[-1]} of {manifest['images']} images: delete it and encode"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor, flips: Tensor | None = None) -> Tensor:
        """Moments [n, 2C, h, w], float32, of images ``indices`` [n]; ``flips`` [n] picks the mirrored ones."""
        index = indices.numpy()
        flip = np.zeros_like(index) if flips is None else flips.numpy() % self._shards[0].shape[1]
        shard_of = np.searchsorted(self._starts, index, side="right") - 1
        out = np.empty((len(index), *self._shards[0].shape[2:]), dtype=np.float16)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            out[here] = self._shards[shard][index[here] - self._starts[shard], flip[here]]
        return torch.from_numpy(out).float()


def sample_posterior(moments: Tensor, noise: Tensor | None = None) -> Tensor:
    """VAE latents [n, C, h, w] from moments [n, 2C, h, w]: mean + std * noise, or the mean without noise."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean if noise is None else mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise


def fitting_latents(moments: Moments, images: int, seed: int) -> Tensor:
    """Posterior samples [n, C, h, w], in VAE units, of ``images`` images drawn without replacement."""
    indices = torch.randperm(len(moments), generator=generator(seed, "fit images"))[:images]
    posterior = moments.read(indices)
    noise = torch.randn(posterior[:, : moments.dimensions].shape, generator=generator(seed, "fit noise"))
    return sample_posterior(posterior, noise)
