"""Time of Muon's orthogonalisation, against the published iteration.

    python -m benchmarks.muon

The matrices of the default's trainings, random. Both ways are timed in turns; a figure is the median. Prints a table in
Markdown.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenbridge.base.device import device_name
from tokenbridge.config.params import load_params
from tokenbridge.engine.optim import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, orthogonalize, same_sized
from tokenbridge.ops.planning.sizes import fresh_model
from tokenbridge.training.trainer import is_matrix
from tokenbridge.vae.training import build_vae, is_kernel

PROJECT = Path(__file__).parents[1]
ROUNDS = 15


def main() -> None:
    config = load_params(PROJECT)
    print(f"{device_name(torch.device('cpu'))}, float32, {torch.get_num_threads()} threads\n")
    print("| training | matrices | published, ms | ours, ms | ratio |\n|---|---|---|---|---|")
    print(row("`vae`", build_vae(config.vae, config.data.image_size), is_kernel))
    print(row("`train@tiny`", fresh_model(config, config.models["tiny"]), is_matrix))


def newton_schulz(matrix: Tensor) -> Tensor:
    """Orthogonalise one matrix [m, n] by the published iteration, in the matrix's type."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if x.shape == matrix.shape else x.T


def row(name: str, model: nn.Module, is_trained: Callable[[str, nn.Parameter], bool]) -> str:
    parameters = [each for key, each in model.named_parameters() if is_trained(key, each)]
    matrices = [torch.randn_like(each).flatten(1) for each in parameters]
    published, ours = medians(
        lambda: [newton_schulz(each) for each in matrices],
        lambda: [orthogonalize(batch) for batch in same_sized(matrices)],
    )
    return f"| {name} | {len(matrices)} | {1e3 * published:.0f} | {1e3 * ours:.0f} | {published / ours:.1f} |"


@torch.no_grad()
def medians(*calls: Callable[[], object]) -> list[float]:
    """Return the median time of each call, in seconds. The first round warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + ROUNDS):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken[1:]) for taken in times]


if __name__ == "__main__":
    main()
