"""The choice of the trunk: the one place that knows every kind."""

from pathlib import Path
from typing import Any

from tokenbridge.base.loading import CONFIG, LoadError, load_whole, read_object
from tokenbridge.config.model import Trunk
from tokenbridge.model.causal import CausalTransformer, RasterTransformer
from tokenbridge.model.transformer import AutoregressiveModel, TokenBridgeTransformer

KINDS: tuple[type[AutoregressiveModel], ...] = (TokenBridgeTransformer, CausalTransformer, RasterTransformer)


def make_model(trunk: Trunk, **sizes: Any) -> AutoregressiveModel:
    """Return a model with fresh weights; ``sizes`` are the arguments of ``AutoregressiveModel``."""
    (kind,) = (each for each in KINDS if each.trunk == trunk)
    return kind(**sizes)


def load_model(folder: Path, **options: Any) -> AutoregressiveModel:
    """Load the model with any trunk that ``save_pretrained`` wrote.

    Args:
        options: of ``load_whole``.

    Raises:
        LoadError: as ``load_whole``, or if the folder holds no such model.
    """
    config, found = folder / CONFIG, TokenBridgeTransformer.__name__
    if config.exists():  # else the error is that of ``load_whole``
        found = read_object(config).get("_class_name", found)
    for kind in KINDS:
        if kind.__name__ == found:
            return load_whole(kind, folder, **options)
    raise LoadError(f"{folder} holds a {found}, not a model of tokens: take it from a pipeline of this project")
