"""Loading of diffusers folders that refuses what diffusers shrugs at: missing, extra or wrong-shaped tensors."""

from pathlib import Path
from typing import Any, TypeVar

from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict

from tokenbridge.base.errors import UserError

Model = TypeVar("Model", bound=ModelMixin)


class LoadError(UserError):
    """A folder that does not hold exactly the model that its config.json describes."""


def load_whole(kind: type[Model], folder: Path, **options: Any) -> Model:
    """``kind.from_pretrained(folder)``, strictly.

    Raises:
        LoadError: naming the missing and left-over tensors; diffusers itself only warns and leaves them random.
    """
    if not (folder / "config.json").exists():
        raise LoadError(f"{folder} is no model folder (config.json is missing): name one that save_pretrained wrote")
    # low_cpu_mem_usage needs accelerate, which nothing else here does
    model, report = kind.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, low_cpu_mem_usage=False, **options
    )
    problems = {name: report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[name]}
    if problems:
        raise LoadError(f"{folder} does not match its config.json, so get or save it again: {problems}")
    # diffusers notes the folder in the config, whence it would go into every saved copy
    config = {name: value for name, value in model.config.items() if name != "_name_or_path"}
    model._internal_dict = FrozenDict(config)  # diffusers offers no way to drop a key
    return model
