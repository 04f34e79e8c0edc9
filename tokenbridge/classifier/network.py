"""A small classifier of real images. It measures whether generated images show the class that was asked for."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenbridge.base.chunks import Advance, Chunk, cut, make_chunks
from tokenbridge.base.distributed import Processes
from tokenbridge.base.files import atomic_folder, atomic_path, read_json, write_json
from tokenbridge.base.finite import check_finite
from tokenbridge.config import LauncherConfig
from tokenbridge.evaluation import EvaluationError
from tokenbridge.images.decoded import decoded
from tokenbridge.images.shards import ImageShards

MAX_SIDE = 32  # pixels; larger images are reduced to it, so that all of ImageNet takes 4 GB
CHUNK = 1000  # images in one file of predictions
WEIGHTS, SETTINGS = "model.safetensors", "config.json"


def convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


class ImageClassifier(nn.Module):
    """A convolutional network: convolutions at full, half and quarter size, then the mean over positions.

    Args:
        width: channels of the first convolution; the next have 2 and 4 times as many.
        label_names: names of the classes, by label.
    """

    def __init__(self, *, width: int, label_names: list[str]) -> None:
        super().__init__()
        self.width, self.label_names = width, label_names
        self.features = nn.Sequential(
            convolution(3, width),
            nn.MaxPool2d(2),
            convolution(width, 2 * width),
            convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            convolution(2 * width, 4 * width),
            convolution(4 * width, 4 * width),
        )
        self.classify = nn.Linear(4 * width, len(label_names))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes] of uint8 images [B, 3, H, W]."""
        inputs = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.classify(self.features(inputs).mean(dim=(2, 3)))
        return logits


def shrink(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce images uint8 [N, 3, H, W] to the classifier's size."""
    side = min(images.shape[-1], MAX_SIDE)
    small: Tensor = F.adaptive_avg_pool2d(torch.from_numpy(images).float(), side).round()
    return small.to(torch.uint8).numpy()


def read_small(shards: ImageShards, span: range | None = None) -> NDArray[np.uint8]:
    """Read images of a split at the classifier's size, uint8 [N, 3, side, side]; without ``span``, all of them."""
    return np.concatenate(list(decoded(shards, shrink, span or range(len(shards)))))


def channels_last(model: ImageClassifier) -> ImageClassifier:
    """Convert the model to the memory layout in which convolutions are fastest on CPUs."""
    return model.to(memory_format=torch.channels_last)


def save_classifier(model: ImageClassifier, folder: Path) -> None:
    with atomic_folder(folder) as target:
        target.mkdir()
        weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, target / WEIGHTS)
        write_json(target / SETTINGS, {"width": model.width, "label_names": model.label_names})


def load_classifier(folder: Path) -> ImageClassifier:
    """Load the classifier saved in ``folder``, in eval mode.

    Raises:
        EvaluationError: if the folder holds no classifier.
        RuntimeError: if a tensor is missing, left over or of another shape.
    """
    if not (folder / SETTINGS).is_file():
        raise EvaluationError(f"{folder} holds no classifier: run `dvc repro classifier`")
    model = ImageClassifier(**read_json(folder / SETTINGS))
    model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    return channels_last(model.eval())


def predict(model: ImageClassifier, images: NDArray[np.uint8], batch_size: int = 500) -> NDArray[np.int64]:
    """Return the most likely class of each uint8 image [N, 3, H, W], int64 [N]."""
    device = model.classify.weight.device
    with torch.inference_mode():
        parts = torch.split(torch.from_numpy(images), batch_size)
        logits = torch.cat([model(part.to(device)) for part in parts])
    check_finite("the classifier's logits", logits, model)
    return logits.argmax(1).cpu().numpy()


def shared_predictions(
    model: ImageClassifier, shards: ImageShards, folder: Path, *, processes: Processes, launcher: LauncherConfig
) -> NDArray[np.int64] | None:
    """Predict the classes of all images in chunks; the processes share the work.

    Each chunk is a file in ``folder``. A rerun makes only the missing files.

    Returns:
        All predictions, int64 [N], in the first process; None in the others.
    """
    chunks = cut(len(shards), CHUNK, lambda index: folder / f"{index:05d}.npy")

    def write(chunk: Chunk, advance: Advance) -> None:
        with atomic_path(chunk.path) as target:
            np.save(target, predict(model, read_small(shards, chunk.span)))
        advance(len(chunk.span))

    make_chunks("classes", chunks, write, processes=processes, launcher=launcher)
    return np.concatenate([np.load(chunk.path) for chunk in chunks]) if processes.first else None


def class_accuracy(model: ImageClassifier, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Return the share of images whose predicted class is their label."""
    return float((predict(model, images) == labels).mean())


def accuracy_by_class(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], label_names: list[str]
) -> dict[str, float]:
    """Return class name -> accuracy, for the classes that occur among ``labels``."""
    return {
        name: float((predicted[labels == index] == index).mean())
        for index, name in enumerate(label_names)
        if (labels == index).any()
    }
