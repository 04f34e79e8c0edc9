"""The choice of the head: the one place that knows every kind."""

from collections.abc import Callable
from typing import Any

from diffusers.configuration_utils import FrozenDict

from tokenbridge.base.errors import UserError
from tokenbridge.config import CONTINUOUS_HEADS, HEADS, LEVEL_HEADS
from tokenbridge.model.bits_head import BitsHead
from tokenbridge.model.diffusion_head import DiffusionHead
from tokenbridge.model.flow_head import FlowHead
from tokenbridge.model.head import DimensionHead
from tokenbridge.model.mixture_head import MixtureHead
from tokenbridge.model.token_head import TokenHead

Head = DimensionHead | TokenHead


def make_head(model: FrozenDict, numbers: int) -> Head:
    """Return the head that a model's config describes, for tokens of so many ``numbers``.

    Raises:
        UserError: for an unknown head, or one that does not fit the tokens.
    """
    if model.head not in HEADS:
        raise UserError(f"head is {model.head!r}: choose one of {', '.join(HEADS)}")
    if (model.head in CONTINUOUS_HEADS) != (model.levels is None):
        raise UserError(
            f"head is {model.head!r} and levels is {model.levels}: {', '.join(CONTINUOUS_HEADS)} are the heads of "
            "continuous tokens, which have no levels"
        )
    needless = [name for name, off in _OF_LEVEL_HEADS.items() if model[name] != off]
    if model.head not in LEVEL_HEADS and needless:
        raise UserError(
            f"head is {model.head!r}, and only {' and '.join(LEVEL_HEADS)} heads have {', '.join(needless)}: leave out "
            "these settings"
        )
    return _WHOLE_TOKENS.get(model.head, dimension_head)(model, numbers)


def make_draft(model: FrozenDict, numbers: int) -> DimensionHead:
    """Return the draft of a model's config: a parallel head without dropout."""
    return dimension_head(model, numbers, kind="parallel", depth=model.draft_depth, dropout=0.0, released_slot0=False)


def dimension_head(model: FrozenDict, numbers: int, **changes: Any) -> DimensionHead:
    settings = _sizes(model, numbers) | {
        "levels": model.levels,
        "heads": model.head_heads,
        "kind": model.head,
        "group": model.head_group,
        "modulation": model.head_modulation,
        "dropout": model.dropout,
        "released_slot0": model.released_slot0,
    }
    return DimensionHead(**settings | changes)


def _sizes(model: FrozenDict, numbers: int) -> dict[str, Any]:
    return {
        "dimensions": numbers,
        "features": model.width,
        "width": model.head_width,
        "depth": model.head_depth,
    }


def _steps(model: FrozenDict, numbers: int) -> dict[str, Any]:
    return _sizes(model, numbers) | {"steps": model.head_steps, "repeats": model.head_repeats}


_OF_LEVEL_HEADS = {"head_group": 1, "draft_depth": None, "released_slot0": False}  # setting -> without it
_WHOLE_TOKENS: dict[str, Callable[[FrozenDict, int], Head]] = {
    "bits": lambda model, numbers: BitsHead(**_steps(model, numbers), levels=model.levels),
    "mixture": lambda model, numbers: MixtureHead(**_sizes(model, numbers), components=model.head_components),
    "diffusion": lambda model, numbers: DiffusionHead(**_steps(model, numbers)),
    "flow": lambda model, numbers: FlowHead(**_steps(model, numbers)),
}
