"""The loop that all trainings share: seeded steps, progress, metrics, and checkpoints to resume from."""

import math
from collections.abc import Callable
from typing import Any

import torch

from tokenbridge.base.checkpoints import CheckpointError, Checkpoints, Pace, State
from tokenbridge.base.progress import Progress
from tokenbridge.base.protocols import MetricSink, Stop, never
from tokenbridge.base.seeding import derive_seed
from tokenbridge.config import LauncherConfig

HISTORY_ROWS = 200  # points of a loss curve, at most
PEAK = "_max"  # suffix of metrics whose greatest value in a window is kept; of others, the mean is kept


class InterruptedTrainingError(RuntimeError):
    """The training was asked to stop, and has saved a checkpoint to resume from."""


History = list[dict[str, float]]


class Evaluations:
    """Measurements during a training, evenly spread over its steps. The last measurement follows the last step.

    Args:
        measure: takes the number of steps done, and returns metrics. Every process calls it.
        times: the number of measurements; at most one after each step.

    Attributes:
        rows: the measurements so far, with ``step`` and ``images``.
    """

    def __init__(self, measure: Callable[[int], dict[str, float]], times: int) -> None:
        self.measure, self.times = measure, times
        self.rows: History = []

    def due(self, done: int, total: int) -> bool:
        """Return whether to measure after ``done`` of ``total`` steps."""
        return done * self.times // total > (done - 1) * self.times // total


def cosine_factor(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak learning rate at ``step``.

    The rate has a linear warm-up, then follows a cosine to 0 at ``total`` (paper Table 4).
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def run_steps(
    *,
    label: str,
    state: State,
    step_fn: Callable[[int], dict[str, torch.Tensor]],
    total_steps: int,
    images_per_step: int,
    seed: int,
    checkpoints: Checkpoints,
    launcher: LauncherConfig,
    tracker: MetricSink,
    precision: str,
    stop: Stop = never,
    evaluations: Evaluations | None = None,
) -> History:
    """Run ``step_fn(step)`` for every step that is not in a checkpoint yet. Kills and resumes do not change the result.

    torch is seeded from (seed, label, step) before each step. So no generator state needs to be saved.

    Args:
        precision: bf16 or fp32; saved in every checkpoint.
        evaluations: its rows are filled, and saved in every checkpoint.

    Returns:
        Rows of metrics over equal windows of steps, with ``step`` and ``images``: means, and peaks for names that end
        with PEAK.

    Raises:
        CheckpointError: if the checkpoint was trained in another precision.
        InterruptedTrainingError: if ``stop`` became true in one of the processes; a checkpoint has been saved.
    """
    processes = checkpoints.processes
    blank: dict[str, Any] = {"step": 0, "precision": precision, "history": [], "window": {}, "evaluations": []}
    evaluations = evaluations or Evaluations(lambda _: {}, 0)
    resumed = checkpoints.load(state) or blank
    _check_precision(resumed["precision"], precision)
    start, history, window = resumed["step"], resumed["history"], Window(resumed["window"])
    evaluations.rows = resumed["evaluations"]
    every = max(1, math.ceil(total_steps / HISTORY_ROWS))
    progress = Progress(label, total_steps, "steps", launcher.log_seconds, start) if processes.first else None
    pace = Pace(launcher.checkpoint_seconds, launcher.checkpoint_share)
    for step in range(start, total_steps):
        torch.manual_seed(derive_seed(seed, label, step))
        window.add(step_fn(step))
        done = step + 1
        if done % every == 0 or done == total_steps:
            means = window.take()
            history.append({"step": done, "images": done * images_per_step, **means})
            if processes.first:
                tracker.metrics(means, step=done)
        if evaluations.due(done, total_steps):
            measured = evaluations.measure(done)
            evaluations.rows.append({"step": done, "images": done * images_per_step, **measured})
            if processes.first:
                tracker.metrics(measured, step=done)
        overdue = done == total_steps or (pace.due and not checkpoints.writing)
        overdue, stopping = processes.any(overdue and processes.first, stop())
        with pace.standing_still(saving=overdue or stopping):
            if overdue or stopping:
                reached = {"step": done, "precision": precision, "history": history, "window": window.sums}
                checkpoints.save(done, state, reached | {"evaluations": evaluations.rows})
            checkpoints.publish_finished()
        if progress:
            progress.advance(1, _note(history[-1:] + evaluations.rows[-1:]))
        if stopping and done < total_steps:
            checkpoints.finish()
            raise InterruptedTrainingError(
                f"{label}: asked to stop, and saved a checkpoint at step {done:,} of {total_steps:,}"
            )
    checkpoints.finish()
    return history


def _check_precision(saved: str, precision: str) -> None:
    if saved != precision:
        raise CheckpointError(
            f"the checkpoint was trained in {saved}, and this training is in {precision}: set precision={saved}"
        )


class Window:
    """Metrics of the steps since the last point of the curve. ``sums`` is its whole state, for checkpoints."""

    def __init__(self, sums: dict[str, Any]) -> None:
        self.sums: dict[str, list[float]] = dict(sums)  # name -> [sum or peak, steps]

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            held, count = self.sums.get(name, (-math.inf if name.endswith(PEAK) else 0.0, 0))
            number = float(value.detach())
            self.sums[name] = [max(held, number) if name.endswith(PEAK) else held + number, count + 1]

    def take(self) -> dict[str, float]:
        """Return the means and peaks of the window, and start the next window."""
        taken = {n: held if n.endswith(PEAK) else held / count for n, (held, count) in self.sums.items()}
        self.sums = {}
        return taken


def _note(rows: History) -> str:
    values = {name: value for row in rows for name, value in row.items() if name not in ("step", "images")}
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
