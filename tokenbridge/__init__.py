"""TokenBridge (arXiv 2503.16430): images generated autoregressively from dimension-wise quantized latents.

The method: ``images`` are encoded by a ``vae``; the ``tokenizer`` turns latents into tokens; the ``model`` predicts
tokens; ``training``, ``sampling``, ``evaluation`` and ``classifier`` use it; ``sources`` brings the images.
What runs it: ``stages``, one for each of DVC; ``ops`` for runs and models; ``cli``, and ``api`` for notebooks.
What it stands on: ``engine``, ``infra``, ``config``, ``base``. docs/architecture.md has the layers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenbridge.api import evaluate, sample, train
    from tokenbridge.config.params import load_params
    from tokenbridge.sampling.pipeline import TokenBridgePipeline

__all__ = ["TokenBridgePipeline", "evaluate", "load_params", "sample", "train"]

HOMES = {"TokenBridgePipeline": "sampling.pipeline", "load_params": "config.params"}  # the others are in api


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` when it is first used, because torch and diffusers take seconds."""
    if name in __all__:
        return getattr(import_module(f"tokenbridge.{HOMES.get(name, 'api')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
