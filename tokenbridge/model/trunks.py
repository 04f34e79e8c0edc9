"""The choice of the trunk: the one place that knows every kind."""

from pathlib import Path
from typing import Any

from tokenbridge.base.loading import load_kind
from tokenbridge.config.model import Trunk
from tokenbridge.model.causal import CausalTransformer, RasterTransformer
from tokenbridge.model.elements import ElementTransformer
from tokenbridge.model.transformer import AutoregressiveModel, TokenBridgeTransformer

KINDS: tuple[type[AutoregressiveModel], ...] = (
    TokenBridgeTransformer,
    ElementTransformer,
    CausalTransformer,
    RasterTransformer,
)


def make_model(trunk: Trunk, **sizes: Any) -> AutoregressiveModel:
    """Return a model with fresh weights; ``sizes`` are the arguments of ``AutoregressiveModel``."""
    (kind,) = (each for each in KINDS if each.trunk == trunk)
    return kind(**sizes)


def load_model(folder: Path, **options: Any) -> AutoregressiveModel:
    """Load the model with any trunk that ``save_pretrained`` wrote.

    Args:
        options: of ``load_whole``.

    Raises:
        LoadError: as ``load_kind``.
    """
    return load_kind(KINDS, folder, "a model of tokens", **options)
