"""Strict loading of diffusers folders: a missing, extra or wrong-shaped tensor is an error, not a warning."""

from pathlib import Path
from typing import Any, TypeVar

from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict

from tokenbridge.base.errors import UserError

Model = TypeVar("Model", bound=ModelMixin)


class LoadError(UserError):
    """A folder that does not hold exactly the model that its config.json describes."""


def load_whole(kind: type[Model], folder: Path, **options: Any) -> Model:
    """Return ``kind.from_pretrained(folder)``, loaded strictly.

    Raises:
        LoadError: if a tensor is missing, left over or of another shape; the message names it. diffusers only warns and
            keeps random weights.
    """
    if not (folder / "config.json").exists():
        raise LoadError(
            f"{folder} is no model folder (config.json is missing): name a folder that save_pretrained wrote"
        )
    # low_cpu_mem_usage needs accelerate, and nothing else in this project needs it
    model, report = kind.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, low_cpu_mem_usage=False, **options
    )
    problems = {name: report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[name]}
    if problems:
        raise LoadError(f"{folder} does not match its config.json, so get or save it again: {problems}")
    # diffusers adds the folder's path to the config, so every saved copy would contain it
    config = {name: value for name, value in model.config.items() if name != "_name_or_path"}
    model._internal_dict = FrozenDict(config)  # diffusers has no public way to remove a key
    return model
