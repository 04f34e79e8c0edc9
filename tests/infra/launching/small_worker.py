"""A worker that keeps the launcher's contract and trains nothing: a number that all processes agree upon, in steps.

    python -m tests.infra.launching.small_worker FOLDER [fail|mistake]

``state.json`` holds the finished step and the number, as a checkpoint would. Half-way, all wait while there is a file
``hold``; then ``fail`` raises on rank 1, and ``mistake`` writes failed.txt.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from tokenbridge.base.distributed import joined
from tokenbridge.base.files import read_json, write_json

START = (0, 1.0)  # step and number
STEPS = 30
SAVE_STEPS = 4


def part(rank: int, step: int, number: float) -> float:
    """What one process adds to the next number."""
    return number / (rank + 1) + step


def undisturbed(processes: int = 2) -> float:
    """The number at the end if nothing happens."""
    number = START[1]
    for step in range(STEPS):
        number = sum(part(rank, step, number) for rank in range(processes)) % 7
    return number


@record
def main() -> None:
    warned: list[int] = []
    signal.signal(signal.SIGUSR2, lambda *_: warned.append(1))
    with joined():
        count(Path(sys.argv[1]), sys.argv[2:], warned)


def count(folder: Path, mischief: list[str], warned: list[int]) -> None:
    rank, state, failed = dist.get_rank(), folder / "state.json", folder / "failed.txt"
    step, number = read_json(state) if state.exists() else START
    dist.barrier()  # all have read
    print(f"starts at step {step} as process {os.getpid()}", flush=True)
    while step < STEPS:
        if step == STEPS // 2:
            while (folder / "hold").exists() and not warned:
                time.sleep(0.05)
            misbehave(mischief, rank, failed)
        shared = torch.tensor([part(rank, step, number), len(warned), failed.exists()], dtype=torch.float64)
        dist.all_reduce(shared)
        if shared[2]:
            return
        step, number = step + 1, float(shared[0]) % 7
        if rank == 0 and (step % SAVE_STEPS == 0 or shared[1]):
            write_json(state, [step, number])
        if shared[1]:
            print(f"warned: saved at step {step}", flush=True)
            return
    if rank == 0:
        print(f"ends with {number!r}", flush=True)
        (folder / "complete").touch()


def misbehave(how: list[str], rank: int, failed: Path) -> None:
    if how == ["fail"] and rank == 1:
        raise ArithmeticError("the numbers do not add up")
    if how == ["mistake"] and rank == 0:
        failed.write_text("this cannot work: choose smaller numbers\n")


if __name__ == "__main__":
    main()
