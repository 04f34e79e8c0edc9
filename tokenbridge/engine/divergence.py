"""Divergence of a training: detection of loss spikes, and a record of a step whose loss or gradient is not finite.

The record of a step is a folder with

- ``weights/``, a checkpoint from before the update;
- ``rank-00000.safetensors``, ..., each process's part of the batch;
- ``quantizer/``;
- ``report.json``, the settings, and each process's loss and the indices of its images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenbridge.base.checkpoints import Checkpoints, State
from tokenbridge.base.distributed import Processes
from tokenbridge.base.files import read_json, write_json

SPIKE = 6.0  # standard deviations above the running mean of the loss
MEMORY = 0.99  # weight of the old running mean at each step
SETTLING = 100  # steps before a loss can count as a spike
MAX_SHOWN = 20  # the most images that a message names
REPORT = "report.json"


class LossWatch:
    """A detector of steps whose loss is far above the losses before it."""

    def __init__(self) -> None:
        self.seen = torch.zeros((), dtype=torch.long)
        self.mean, self.variance = (torch.zeros((), dtype=torch.float64) for _ in range(2))

    def is_spike(self, loss: Tensor) -> Tensor:
        """Return 1 for a spike, else 0, and update the running mean. A spike updates it as the limit itself would."""
        value = loss.detach().double().cpu()
        limit = self.mean + SPIKE * self.variance.sqrt()
        spike = (self.seen >= SETTLING) & (value > limit)
        value = torch.where(spike, limit, value)
        weight = max(1 - MEMORY, 1 / (1 + int(self.seen)))
        difference = value - self.mean
        self.mean += weight * difference
        self.variance += weight * ((1 - weight) * difference**2 - self.variance)
        self.seen += 1
        return spike.double()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the state themselves, not copies."""
        return {"seen": self.seen, "mean": self.mean, "variance": self.variance}


@dataclass(frozen=True)
class BadStep:
    """One process's record of a step whose loss or gradient is not finite."""

    step: int
    loss: float  # of this process's part of the batch
    images: list[int]  # indices of the images of this part
    tensors: dict[str, Tensor]  # this part of the batch, as the model got it
    settings: dict[str, Any]  # everything else that the step depends on


def keep_bad_step(folder: Path, bad: BadStep, state: State, processes: Processes) -> str:
    """Write ``folder``, all processes together. Return a text for the error: ranks, their images, the folder."""
    weights = Checkpoints(folder / "weights", processes, keep=1)
    weights.save(bad.step, state, {"step": bad.step})
    weights.finish()
    save_file({name: each.cpu().contiguous() for name, each in bad.tensors.items()}, _part(folder, processes.rank))
    parts = processes.gather({"rank": processes.rank, "loss": bad.loss, "images": bad.images})
    if processes.first:
        losses = [{**part, "loss": str(part["loss"])} for part in parts]  # JSON has no nan
        write_json(folder / REPORT, {"step": bad.step, "settings": bad.settings, "processes": losses})
    wrong = [part for part in parts if not torch.isfinite(torch.tensor(part["loss"]))]
    failed = "; ".join(_described(part) for part in wrong or parts)
    # gradients are summed over ranks already, so it is not known whose gradient is not finite
    prefix = "" if wrong else "every loss is finite, but not every gradient: "
    return f"{prefix}{failed}. Batch and weights are in {folder}"


def _part(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.safetensors"


def _described(part: dict[str, Any]) -> str:
    images: list[int] = part["images"]
    more = ", ..." if len(images) > MAX_SHOWN else ""
    return f"rank {part['rank']} has loss {part['loss']} on images {', '.join(map(str, images[:MAX_SHOWN]))}{more}"


def load_bad_step(folder: Path, state: State) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Load the weights from before the step into ``state``. Return the report, and each process's part of the batch."""
    report: dict[str, Any] = read_json(folder / REPORT)
    Checkpoints(folder / "weights").load(state)
    return report, [load_file(_part(folder, part["rank"])) for part in report["processes"]]
