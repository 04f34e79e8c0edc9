"""Two steps with sharded weights: ``torchrun -m tests.ops.planning.sharded_training FOLDER OVERRIDES ...``.

What each process holds is written to FOLDER/<rank>.json, in bytes.
"""

import json
import sys
from pathlib import Path

import torch

from tests.ops.planning.conftest import composed
from tests.ops.planning.measuring import held_between_steps, local_bytes, peak_of_a_step, trainer_of
from tokenbridge.base.distributed import joined


def main(folder: Path, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    with joined() as processes:
        own = folder / str(processes.rank)
        trainer = trainer_of(composed(*overrides), own, processes)
        found = {"peak": peak_of_a_step(trainer, folder / f"{processes.rank}.trace")} | held_between_steps(trainer)
        trainer.accumulate_gradients(trainer.draw(2))
        found["gradients"] = local_bytes(p.grad for p in trainer.model.parameters() if p.grad is not None)
        (folder / f"{processes.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
