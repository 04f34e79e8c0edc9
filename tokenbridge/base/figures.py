"""Plots of numbers, drawn with matplotlib."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Floats = NDArray[np.floating]
PANELS_PER_ROW = 4


def _panels(count: int, size: float = 2.6) -> tuple[Figure, list]:  # type: ignore[type-arg]
    columns = min(count, PANELS_PER_ROW)
    rows = -(-count // columns)
    figure = Figure(figsize=(size * columns, size * rows), layout="constrained", dpi=110)
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, list(axes[:count])


def levels_figure(columns: Floats, levels: Floats) -> Figure:
    """Draw a histogram of each dimension's latents [C, M], and mark its levels [C, B], if it has some."""
    figure, axes = _panels(len(columns))
    for dimension, (axis, values, ticks) in enumerate(zip(axes, columns, levels, strict=True)):
        axis.hist(values, bins=120, range=(-5, 5), density=True, color="#7aa6c2")
        axis.vlines(ticks, 0, 0.06, color="#c0392b", linewidth=0.7)
        axis.set_title(f"dimension {dimension}", fontsize=9)
        axis.set_yticks([])
    figure.suptitle("normalised latents (blue) and levels (red)", fontsize=10)
    return figure


def order_figure(latents: Floats, share: Floats, order: NDArray[np.integer]) -> Figure:
    """Draw the spectrum of each dimension of latents [N, C, h, w], in the order in which the head predicts them.

    Args:
        share: share [C] of each dimension's energy at low frequencies.
        order: permutation [C] of the dimensions.
    """
    figure, axes = _panels(len(order))
    energy = np.square(np.abs(np.fft.fftshift(np.fft.fft2(latents), axes=(-2, -1)))).mean(0)
    for place, (axis, dimension) in enumerate(zip(axes, order, strict=True)):
        axis.imshow(np.log10(energy[dimension] + 1e-12), cmap="magma")
        axis.set_title(f"{place + 1}. dimension {dimension}: {share[dimension]:.0%} low", fontsize=8)
        axis.set_axis_off()
    figure.suptitle("spectral energy (log), low frequencies in the centre, first predicted first", fontsize=10)
    return figure


Metrics = Mapping[str, float]


def study_figure(studies: Mapping[str, Sequence[tuple[object, Metrics]]], baseline: Metrics) -> Figure:
    """Draw each metric (rows) against each studied setting (columns); a dashed line shows the baseline.

    Args:
        studies: setting name -> its values, each with the metrics measured at that value.
        baseline: the metrics without quantization.
    """
    size = (3.2 * len(studies), 2.4 * len(baseline))
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots(len(baseline), len(studies), squeeze=False, sharex="col", sharey="row")
    for row, (metric, value) in zip(axes, baseline.items(), strict=True):
        row[0].set_ylabel(metric, fontsize=7)
        for axis, points in zip(row, studies.values(), strict=True):
            axis.axhline(value, color="#888888", linestyle="--", linewidth=1)
            names = [str(setting) for setting, _ in points]  # text, not numbers: 8, 16, 32 are evenly spaced
            axis.plot(names, [found[metric] for _, found in points], "o:", linewidth=1)
            axis.margins(x=0.2)
    for axis, name in zip(axes[-1], studies, strict=True):
        axis.set_xlabel(name)
    figure.suptitle("reconstructions through the tokens, and by the VAE alone (dashed)", fontsize=10)
    return figure
