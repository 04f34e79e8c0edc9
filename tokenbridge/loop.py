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
    resumed = _load(checkpoint, state)
    start, history, window_sums = resumed["step"], resumed["history"], resumed["window"]
    window = max(1, math.ceil(total_steps / HISTORY_ROWS))
    progress = Progress(label, total_steps, "steps", launcher.log_seconds, start)
    saved = time.monotonic()
    for step in range(start, total_steps):
        torch.manual_seed(derive_seed(seed, label, step))
        for name, value in step_fn(step).items():
            total, count = window_sums.get(name, (0.0, 0))
            window_sums[name] = (total + float(value.detach()), count + 1)
        done = step + 1
        if done % window == 0 or done == total_steps:
            means = {name: total / count for name, (total, count) in window_sums.items()}
            history.append({"step": done, "images": done * images_per_step, **means})
            tracker.metrics(means, step=done)
            window_sums = {}
        if done == total_steps or time.monotonic() - saved > launcher.checkpoint_seconds:
            _save(checkpoint, state, {"step": done, "history": history, "window": window_sums})
            saved = time.monotonic()
        progress.advance(1, _note(history))
    return history


def _note(history: History) -> str:
    last = history[-1] if history else {}
    return "  ".join(f"{name} {value:.4g}" for name, value in last.items() if name not in ("step", "images"))


def _save(path: Path, state: Mapping[str, Stateful], progress: dict[str, Any]) -> None:
    states = {name: part.state_dict() for name, part in state.items()}
    with atomic_path(path) as target:
        torch.save({**progress, "state": states}, target)


def _load(path: Path, state: Mapping[str, Stateful]) -> dict[str, Any]:
    if not path.exists():
        return {"step": 0, "history": [], "window": {}}
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in state.items():
        part.load_state_dict(saved["state"][name])
    return saved
