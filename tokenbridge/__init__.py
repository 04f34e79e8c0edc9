"""TokenBridge (arXiv 2503.16430): images generated autoregressively from dimension-wise quantized latents.

The method: ``images`` are encoded by a ``vae``; the ``tokenizer`` turns latents into tokens; the ``model`` predicts
tokens; ``training``, ``sampling``, ``evaluation`` and ``classifier`` use it; ``sources`` brings the images.
What runs it: ``stages``, one for each of DVC; ``ops`` for runs and models; ``cli``.
What it stands on: ``engine``, ``infra``, ``config``, ``base``. docs/architecture.md has the layers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenbridge.sampling.pipeline import TokenBridgePipeline

__all__ = ["TokenBridgePipeline"]

HOMES = {"TokenBridgePipeline": "tokenbridge.sampling.pipeline"}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: torch and diffusers take seconds."""
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
