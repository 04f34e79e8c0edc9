"""Released weight files: read without running code in them, and matched with a model's tensors by name."""

import argparse
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenbridge.base.errors import UserError


class ImportFailedError(UserError):
    """A checkpoint that does not fit what was asked for; the message names the tensors or the setting."""


def read_weights(path: Path) -> dict[str, Any]:
    """Return the content of a .safetensors file, or of a file of ``torch.save`` (.pth, .ckpt), on the CPU.

    Where the format allows it, a tensor is read from the disk only when it is used.

    Raises:
        ImportFailedError: if it is missing, cut off, or holds a pickled object other than tensors, plain values and
            the argparse.Namespace of settings that MAR's script saves beside its weights.
    """
    if not path.is_file():
        raise ImportFailedError(f"{path} is missing: name the checkpoint's file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickled(path)
    except pickle.UnpicklingError as error:
        raise ImportFailedError(
            f"{path} holds more than tensors and settings, and reading it would run its code. Save its state dict "
            f"alone, if you trust it ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, SafetensorError, EOFError) as error:
        raise ImportFailedError(f"{path} cannot be read, so get it again ({error})") from error
    if not isinstance(content, dict):
        raise ImportFailedError(f"{path} holds a {type(content).__name__}: it should be a dict of tensors")
    return content


def _load_pickled(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        # memory-mapped, so that the optimizer's state, twice the weights' size, is never read; works for zip files only
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Tensor], released_names: Callable[[str], list[str]]) -> None:
    """Copy ``weights`` into ``model``; each tensor on either side must be used exactly once.

    Args:
        released_names: the names in ``weights`` for one of the model's tensors; several names are its rows, in order.

    Raises:
        ImportFailedError: naming the tensors that are missing, left over or of another shape.
    """
    targets = model.state_dict()
    sources = {name: released_names(name) for name in targets}
    wanted = [source for names in sources.values() for source in names]
    missing = [source for source in wanted if source not in weights]
    left_over = sorted(set(weights) - set(wanted))
    if missing or left_over:
        raise ImportFailedError(
            f"the checkpoint is not of the layout expected here. Missing: {', '.join(missing) or 'nothing'}. "
            f"Left over: {', '.join(left_over) or 'nothing'}"
        )
    for name, target in targets.items():
        _copy_rows(target, {source: weights[source] for source in sources[name]})


def _copy_rows(target: Tensor, rows: dict[str, Tensor]) -> None:
    """Copy the tensors of ``rows``, in order, into ``target``.

    Axes of size 1 are ignored when shapes are compared, because a 1 x 1 convolution is a linear layer.
    """
    shape = _without_ones([target.shape[0] // len(rows), *target.shape[1:]])
    for name, tensor in rows.items():
        if _without_ones(tensor.shape) != shape:
            raise ImportFailedError(f"{name} has shape {list(tensor.shape)}, but the other tensors ask for {shape}")
    target.copy_(torch.stack(list(rows.values())).reshape(target.shape))


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size > 1]
