"""The loop that every trained part shares: seeded steps, progress, metrics, and checkpoints to resume from."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from tokenbridge.config import LauncherConfig
from tokenbridge.files import atomic_path
from tokenbridge.progress import Progress
from tokenbridge.seeding import derive_seed

HISTORY_ROWS = 200  # points of a loss curve, whatever its length


class Stateful(Protocol):
    """A module, an optimizer, an EMA."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class MetricSink(Protocol):
    """Where metrics go while training runs; ``tokenbridge.tracking.spool.Tracker`` is one."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None: ...


History = list[dict[str, float]]


def cosine_factor(step: int, total: int, warmup: int) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then a cosine to 0 at ``total`` (paper Table 4)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def run_steps(
    *,
    label: str,
    state: Mapping[str, Stateful],
    step_fn: Callable[[int], dict[str, torch.Tensor]],
    total_steps: int,
    images_per_step: int,
    seed: int,
    checkpoint: Path,
    launcher: LauncherConfig,
    tracker: MetricSink,
) -> History:
    """Run ``step_fn(step)`` for every step not yet in ``checkpoint``; the same bits however often it was killed.

    torch is seeded from (seed, label, step) before each step, so that no generator state need be saved.

    Returns:
        Rows of the metrics' means over equal windows of steps, with ``step`` and ``images``.
    """
    start, history = _load(checkpoint, state)
    window = max(1, math.ceil(total_steps / HISTORY_ROWS))
    progress = Progress(label, total_steps, "steps", launcher.log_seconds, start)
    sums: dict[str, torch.Tensor] = {}
    saved = time.monotonic()
    for step in range(start, total_steps):
        torch.manual_seed(derive_seed(seed, label, step))
        for name, value in step_fn(step).items():
            sums[name] = sums.get(name, torch.zeros(())) + value.detach().float().cpu()
        done = step + 1
        if done % window == 0 or done == total_steps:
            steps = (done - 1) % window + 1
            means = {name: float(total) / steps for name, total in sums.items()}
            history.append({"step": done, "images": done * images_per_step, **means})
            tracker.metrics(means, step=done)
            sums = {}
            if done == total_steps or time.monotonic() - saved > launcher.checkpoint_seconds:
                _save(checkpoint, state, done, history)
                saved = time.monotonic()
        progress.advance(1, _note(history))
    return history


def _note(history: History) -> str:
    last = history[-1] if history else {}
    return "  ".join(f"{name} {value:.4g}" for name, value in last.items() if name not in ("step", "images"))


def _save(path: Path, state: Mapping[str, Stateful], step: int, history: History) -> None:
    states = {name: part.state_dict() for name, part in state.items()}
    with atomic_path(path) as target:
        torch.save({"step": step, "history": history, "state": states}, target)


def _load(path: Path, state: Mapping[str, Stateful]) -> tuple[int, History]:
    if not path.exists():
        return 0, []
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in state.items():
        part.load_state_dict(saved["state"][name])
    return saved["step"], saved["history"]
