"""The one way in for files of models that others wrote: model folders, weight files and their JSON.

Loading is strict: a missing, extra or wrong-shaped tensor is an error, not a warning. Nothing in a file is executed.
Errors name a file that cannot be read, and what it is, such as a pointer of Git LFS or a web page.
"""

import argparse
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from diffusers.models.modeling_utils import no_init_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json
from tokenbridge.base.finite import NotFiniteError

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=ModelMixin)

CONFIG = "config.json"
MAX_JSON = 100_000_000  # bytes
# diffusers' names of weights, and of the index of shards; a variant, such as fp16, has its own files
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<variant>(?!.*-of-)[\w-]+))?\.(?P<format>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<indexed>[\w-]+))?\.json)?"
)
WRAPPINGS = ("state_dict", "model_state_dict", "module")  # under which trainers save the tensors
# what torch.compile, DDP, FSDP and activation checkpointing put into tensors' names
WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
SIGNS = {  # how a file begins that is not what its name says -> what it is, and the advice
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder",
    b"<!doctype": "is a web page, not the file itself: download it again, with a login if it needs one",
    b"<html": "is a web page, not the file itself: download it again, with a login if it needs one",
    b"<?xml": "is an answer of a server, not the file itself: download it again, with a login if it needs one",
}


class LoadError(UserError):
    """A file or folder of a model that cannot be loaded; the message names it, and says what it is."""


def load_kind(kinds: Sequence[type[Model]], folder: Path, what: str, **options: Any) -> Model:
    """Return the model of any of the ``kinds`` that ``save_pretrained`` wrote; the first one if its config names none.

    Args:
        what: the kinds in words, for the error.
        options: of ``load_whole``.

    Raises:
        LoadError: as ``load_whole``, or if the folder holds another model.
    """
    config, found = folder / CONFIG, kinds[0].__name__
    if config.exists():  # else the error is that of ``load_whole``
        found = read_object(config).get("_class_name", found)
    for kind in kinds:
        if kind.__name__ == found:
            return load_whole(kind, folder, **options)
    raise LoadError(f"{folder} holds a {found}, not {what}: take it from a pipeline of this project")


def load_whole(
    kind: type[Model],
    folder: Path,
    *,
    torch_dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> Model:
    """Return the model that ``save_pretrained`` wrote to ``folder``, in eval mode, loaded strictly.

    Args:
        torch_dtype: a dtype or its name; None: float32.
        variant: as in the files' names, such as "fp16"; None: those without one, or the only ones there are.
        use_safetensors: True: no .bin file is read; False: only .bin files are; None: safetensors if there are both.

    Raises:
        LoadError: if a file cannot be read, or a tensor is missing, left over or of another shape.
        NotFiniteError: if a tensor contains NaN or infinity.
    """
    dtype = as_dtype(torch_dtype)
    # diffusers writes the folder's path into the config, so every saved copy would contain it
    config = {name: value for name, value in _read_config(folder).items() if name != "_name_or_path"}
    weights: dict[str, Tensor] = {}
    for file in _weight_files(folder, variant, use_safetensors):
        weights |= tensors_by_name(unwrapped(read_weights(file)), str(file))
    try:
        with no_init_weights():
            model: Model = kind.from_config(config)
    except Exception as error:  # whatever a wrong setting makes the model's constructor raise
        raise LoadError(f"{folder / CONFIG} does not describe a {kind.__name__} ({error}): get it again") from error
    model._fix_state_dict_keys_on_load(weights)  # names of attention before diffusers 0.19
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise LoadError(f"{folder} does not match its {CONFIG}, so get or save it again: {error!s:.2000}") from error
    for name, target in model.state_dict().items():
        check_tensor(f"{folder}: {name}", weights[name], target)
    return nn.Module.to(model.eval(), dtype=dtype)


def as_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating-point dtype, given by itself or by its name.

    Raises:
        LoadError: if it is no such dtype.
    """
    dtype = getattr(torch, value, value) if isinstance(value, str) else value
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise LoadError(f"torch_dtype is {value!r}: choose a floating-point dtype, such as 'bfloat16'")
    return dtype


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object.

    Raises:
        LoadError: if it is missing, or something else.
    """
    _check_file(path)
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON:,} bytes")
        content = read_json(path)
    except (ValueError, OSError) as error:
        raise LoadError(f"{path} is no JSON file, or is cut off ({error}): get it again") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a JSON object: get it again")
    return content


def read_weights(path: Path) -> dict[str, Any]:
    """Return the content of a .safetensors file, or of a file of ``torch.save`` (.bin, .pth, .ckpt), on the CPU.

    The content decides which it is, not the name. Where the format allows it, a tensor is read from the disk only when
    it is used.

    Raises:
        LoadError: if it is missing, cut off, or holds a pickled object other than tensors, plain values and the
            argparse.Namespace of settings that MAR's script saves beside its weights.
    """
    is_safetensors = _check_file(path)[8:9] == b"{"  # after the header's length
    try:
        content = load_file(path) if is_safetensors else _load_pickled(path)
    except Exception as error:  # torch raises many kinds for damaged files
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise LoadError(
                f"{path} holds more than tensors and settings ({code[1]}), and reading it would run its code. Save its "
                "state dict alone, if you trust it"
            ) from error
        # torch's own advice for an unreadable pickle is to load it without protection
        reason = "no pickle of tensors" if isinstance(error, pickle.UnpicklingError) else f"{error!s:.200}"
        raise LoadError(f"{path} is damaged, cut off or no file of weights ({reason}): get it again") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a {type(content).__name__}: it should be a dict of tensors")
    return content


def unwrapped(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what trainers such as Lightning save one level deeper, beside their own state."""
    return next((content[key] for key in WRAPPINGS if isinstance(content.get(key), Mapping)), content)


def tensors_by_name(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, without what wrappers such as DDP and torch.compile add to their names.

    Raises:
        LoadError: naming ``source``, if the values are not all tensors, or two names become the same.
    """
    if not isinstance(content, Mapping):
        raise LoadError(f"{source} is a {type(content).__name__}: it should be a dict of tensors")
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise LoadError(f"{source} holds not only tensors, but {', '.join(others[:10])}: save the state dict alone")
    tensors = {WRAPPERS.sub("", str(name)): tensor for name, tensor in content.items()}
    if len(tensors) < len(content):
        raise LoadError(
            f"{source} holds a tensor twice, with and without a wrapper's prefix: save the state dict alone"
        )
    if all(name.startswith("model.") for name in tensors):  # Lightning's name for the wrapped module
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return tensors


def check_tensor(name: str, tensor: Tensor, target: Tensor) -> None:
    """Check that a tensor may be copied into ``target``, which has its shape.

    Raises:
        LoadError: naming it, if it is sparse or quantized.
        NotFiniteError: naming it, if it contains NaN or infinity.
    """
    if tensor.layout != torch.strided or tensor.is_floating_point() != target.is_floating_point():
        raise LoadError(f"{name} is {tensor.dtype}, {tensor.layout}, but weights must be plain {target.dtype}")
    if not tensor.isfinite().all():
        raise NotFiniteError(f"{name} contains NaN or infinity: get or train the model again")


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise LoadError(f"{folder} is {'a file' if folder.exists() else 'missing'}: name a folder with a {CONFIG}")
    if not (folder / CONFIG).exists():
        inside = ", ".join(str(path.parent) for path in sorted(folder.glob(f"*/{CONFIG}")))
        raise LoadError(
            f"{folder} is no model folder ({CONFIG} is missing): name "
            + (f"one of the folders in it: {inside}" if inside else "a folder that save_pretrained wrote")
        )
    return read_object(folder / CONFIG)


def _weight_files(folder: Path, variant: str | None, use_safetensors: bool | None) -> list[Path]:
    """Return the files that together hold the weights: one, or shards."""
    matches = [match for path in sorted(folder.iterdir()) if (match := WEIGHTS.fullmatch(path.name))]
    matches.sort(key=lambda match: (match["format"] == "bin", match["index"] is None))  # the first is preferred
    found: dict[str, re.Match[str]] = {}
    for match in matches:
        if use_safetensors in (None, match["format"] == "safetensors"):
            found.setdefault(match["variant"] or match["indexed"] or "", match)
    chosen = next(iter(found)) if variant is None and len(found) == 1 else variant or ""
    if chosen not in found:
        there = ", ".join(match[0] for match in matches) or "none"
        wanted = f"weights of the variant {variant!r}" if variant else "weights"
        raise LoadError(f"{folder} has no {wanted} as diffusers names them. There: {there}. Set variant, or get them")
    if chosen != (variant or ""):
        logger.info(f"{folder} has only weights of the variant {chosen}: these are loaded")
    file = folder / found[chosen][0]
    return [folder / name for name in _shards(file)] if found[chosen]["index"] else [file]


def _shards(index: Path) -> list[str]:
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in names.values()
    ):
        raise LoadError(f"{index} is no index of shards in its folder: get it again")
    return sorted(set(names.values()))


def _check_file(path: Path) -> bytes:
    """Return how the file begins, if it is a regular file and may be what its name says."""
    try:
        if not path.is_file():
            raise LoadError(f"{path} is {'no regular file' if path.exists() else 'missing'}: name or get the file")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    for sign, advice in SIGNS.items():
        if head.lstrip().lower().startswith(sign):
            raise LoadError(f"{path} {advice}")
    if not head:
        raise LoadError(f"{path} is empty: get it again")
    return head


def _load_pickled(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        # memory-mapped, so that the optimizer's state, twice the weights' size, is never read; works for zip files only
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
