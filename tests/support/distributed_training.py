"""A training as several processes run it, or one: ``python -m tests.support.distributed_training FOLDER CASE ...``.

FOLDER has moments/, and the quantizers quantizer/ and continuous/. What each case gives is written to
FOLDER/<case>/<processes>/, or, if it goes on with a checkpoint of other processes, to
FOLDER/<case>/<former>-<processes>/.
"""

import json
import os
import shutil
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.small_model import LAUNCHER, MODEL, RECIPE, Silent
from tokenbridge.base.checkpoints import Checkpoints, State, live_tensors
from tokenbridge.base.console import log_to_console
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes, joined
from tokenbridge.config import ModelConfig
from tokenbridge.engine.loop import InterruptedTrainingError
from tokenbridge.engine.optim import NonFiniteError
from tokenbridge.tokenizer.fitting import load_quantizer
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.training import trainer as training
from tokenbridge.training import validation
from tokenbridge.training.batches import Batch
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.parallel import gather_full
from tokenbridge.training.trainer import CHECKPOINTS, Trainer, train

STEPS = 20
BATCH = 10  # four processes have 2, 3, 2 and 3 of it
BAD_PLACE = 7  # in the first batch; the second of two processes has it
EVALUATED_BATCHES = 3  # of 21 or 22 images; each number of masked positions is compiled anew
HALF = 8  # steps of a training that is interrupted
PLAIN = replace(MODEL, train=replace(RECIPE, batch_size=BATCH, epochs=STEPS * BATCH / 64))

# A case is named by its parts, such as fsdp_accumulated. They change the launcher, the model and the recipe.
LAUNCHER_PARTS: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "accumulated": {"accumulation": 2},
    "checkpointed": {"checkpoint_activations": True},
    "compiled": {"compile": True},
}
MODEL_PARTS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.1},
    "flow": {"head": "flow"},
    "elements": {"trunk": "elements"},  # one slot, so the head embeds no levels
}
RECIPE_PARTS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "bad": {"label_dropout": 0.0},
    "grouped": {"mask_group_size": 1, "mask_ratio_min": 0.1},
}


def changes(case: str, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in case.split("_") for name, value in parts.get(part, {}).items()}


class Watched(Checkpoints):
    """Checkpoints that also write what the training has at that moment, beside their folder."""

    def save(self, step: int, state: State, progress: dict[str, Any]) -> None:
        write(self.folder.parent / "saved.safetensors", live_tensors(state), self.processes)
        super().save(step, state, progress)


class FirstStepWatched(Trainer):
    """A training that also writes the gradients of its first step, before they are clipped."""

    watched = False

    def accumulate_gradients(self, batch: Batch) -> Tensor:
        loss = super().accumulate_gradients(batch)
        if not self.watched:
            parameters = self.model.named_parameters()  # empty ones have no gradient if they are sharded
            gradients = {name: p.grad for name, p in parameters if p.grad is not None and p.numel()}
            write(self.folder / "gradients.safetensors", gradients, self.processes)
        self.watched = True
        return loss


def write(path: Path, tensors: dict[str, Tensor], processes: Processes) -> None:
    found = {key: tensor.clone().contiguous() for key, tensor in gather_full(tensors, processes).items()}
    assert bool(found) == processes.first, "only rank 0 needs the host memory for all of it"
    if found:
        save_file(found, path)


class Run:
    """One case in one process."""

    def __init__(self, folder: Path, case: str, processes: Processes, start: str = "") -> None:
        self.processes = processes
        recipe = replace(PLAIN.train, **changes(case, RECIPE_PARTS))
        self.config: ModelConfig = replace(PLAIN, **changes(case, MODEL_PARTS), train=recipe)
        self.launcher = replace(LAUNCHER, checkpoint_seconds=3600, **changes(case, LAUNCHER_PARTS))
        self.quantizer = load_quantizer(folder / ("continuous" if "flow" in case else "quantizer"))
        self.data = FreshTokens(Moments(folder / "moments"), self.quantizer)
        self.out = folder / case / f"{start}{processes.world}"
        self.out.mkdir(parents=True, exist_ok=True)
        if start and processes.first:
            shutil.copytree(folder / case / start[:-1] / CHECKPOINTS, self.out / CHECKPOINTS)
        processes.wait()

    def trainer(self) -> Trainer:
        cpu = torch.device("cpu")
        return Trainer(self.config, self.data, self.quantizer, self.out, self.launcher, cpu, self.processes)

    def train(self, steps: int | None = None) -> None:
        """Train to the end, or for ``steps``. Losses and averaged weights are written if it ends."""
        left = iter(range(steps or STEPS))
        model, history, evaluations = train(
            self.config,
            self.data,
            self.data,
            self.quantizer,
            folder=self.out,
            launcher=self.launcher,
            tracker=Silent(),
            device=torch.device("cpu"),
            processes=self.processes,
            stop=lambda: next(left, None) == (steps or STEPS) - 1,
        )
        if self.processes.first:
            (self.out / "losses.json").write_text(json.dumps([row["loss"] for row in history]))
            (self.out / "evaluations.json").write_text(json.dumps(evaluations))
            save_file(dict(model.state_dict()), self.out / "weights.safetensors")

    def loaded(self) -> None:
        """Write all that a new training has after it loaded the checkpoint."""
        trainer = self.trainer()
        assert Checkpoints(self.out / CHECKPOINTS, self.processes).load(trainer.state) is not None
        write(self.out / "loaded.safetensors", live_tensors(trainer.state), self.processes)

    def bad(self) -> None:
        """A first step whose loss is not finite, because of one image; write each process's error message."""
        trainer = self.trainer()
        self.data.labels.zero_()
        self.data.labels[trainer.order.indices(0)[BAD_PLACE]] = 1
        torch.nn.init.constant_(trainer.model.class_embedding.weight[1], torch.inf)
        try:
            trainer.step(0)
        except NonFiniteError as error:
            (self.out / f"message-{self.processes.rank}").write_text(str(error))


def main(folder: Path, cases: list[str]) -> None:
    log_to_console()
    torch.set_num_threads(1)
    eager = partialmethod(nn.Module.compile, backend="aot_eager")
    with (
        patch.object(training, "Checkpoints", Watched),
        patch.object(training, "Trainer", FirstStepWatched),
        patch.object(validation, "BATCHES", EVALUATED_BATCHES),
        patch.object(nn.Module, "compile", eager),
        joined() if "RANK" in os.environ else nullcontext(SINGLE_PROCESS) as processes,
    ):
        for case in cases:
            name, _, former = case.partition("<")  # interrupted<2: goes on with the checkpoint of two processes
            run = Run(folder, name, processes, f"{former}-" if former else "")
            if former:
                run.loaded()
                run.train()
            elif name == "bad":
                run.bad()
            elif "interrupted" in name:
                with suppress(InterruptedTrainingError):
                    run.train(HALF)
            else:
                run.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
