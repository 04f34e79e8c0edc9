"""How time and memory grow with the number of images, positions, dimensions and levels.

    python -m benchmarks.growth

The models have the width of `tiny`. An exponent of 1 is linear growth; it is fitted to the larger half of the sizes, on
logarithmic scales. Prints a table in Markdown.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.arithmetic import seconds
from benchmarks.suite import cases
from benchmarks.suite.cases import Case
from tokenbridge.ops.planning.steps import HeldBytes

GROWTHS: list[tuple[str, str, Sequence[int], Callable[[int], Case]]] = [
    ("quantize", "images", [1024, 4096, 16_384, 65_536], lambda n: cases.quantize(n, positions=16, dimensions=8)),
    ("quantize", "levels", [8, 32, 128, 256], lambda n: cases.quantize(256, levels=n)),
    ("sampling, 16 steps", "images", [16, 32, 64, 128], lambda n: cases.sampling("tiny", 4, 8, n, 16)),
    ("sampling, 16 steps", "positions", [16, 64, 256, 1024], lambda n: cases.sampling("tiny", round(n**0.5), 8, 1, 16)),
    ("sampling, 16 steps", "dimensions", [4, 16, 32, 64], lambda n: cases.sampling("tiny", 8, n, 4, 16)),
    ("training step", "images", [16, 32, 64, 128], partial(cases.training_step, "tiny", 4, 8)),
    ("training step", "positions", [16, 64, 256, 1024], lambda n: cases.training_step("tiny", round(n**0.5), 8, 4)),
    ("training step", "dimensions", [4, 16, 32, 64], lambda n: cases.training_step("tiny", 8, n, 8)),
    ("training step", "levels", [8, 32, 128, 256], lambda n: cases.training_step("tiny", 8, 8, 8, n)),
]


def main() -> None:
    print("| part | what grows | sizes | ms | time | MiB | memory |\n|---|---|---|---|---|---|---|")
    for part, what, sizes, build in GROWTHS:
        times, memory = zip(*(measure(build(size)) for size in sizes), strict=True)
        print(
            f"| {part} | {what} | {listed(sizes)} | {listed([1e3 * each for each in times])} "
            f"| {exponent(sizes, times):.2f} | {listed([each / 2**20 for each in memory])} "
            f"| {exponent(sizes, memory):.2f} |",
            flush=True,
        )


def measure(case: Case) -> tuple[float, int]:
    """Return the time of one call, and the most bytes of its tensors."""
    with HeldBytes() as held:
        case.ours()
    return seconds(case.ours), held.most


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return e of costs that grow as size ** e, from the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(costs[half:]), 1)[0])


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in values)


if __name__ == "__main__":
    main()
