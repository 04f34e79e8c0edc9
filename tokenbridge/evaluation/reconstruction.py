"""PSNR and SSIM of reconstructed images against the originals, by torchmetrics."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tokenbridge.base.slices import slices
from tokenbridge.evaluation import EvaluationError

CHUNK = 50  # images compared at a time: several times faster than 500, whose windows do not fit into the cache
HELD = 26  # numbers for each of an image's, at most: SSIM's windows
PEAK = 255.0


def psnr(reconstructed: NDArray[np.uint8], originals: NDArray[np.uint8]) -> float:
    """Return the mean over images of the peak signal-to-noise ratio, in dB, of uint8 images [N, 3, H, W].

    It is infinite if one image is reproduced without any error.
    """
    mean = partial(peak_signal_noise_ratio, data_range=PEAK, dim=(1, 2, 3))
    return _mean_over_images(mean, reconstructed, originals)


def ssim(reconstructed: NDArray[np.uint8], originals: NDArray[np.uint8]) -> float:
    """Return the mean over images of the structural similarity of uint8 images [N, 3, H, W].

    The window is torchmetrics' default, a Gaussian.
    """
    mean = partial(structural_similarity_index_measure, data_range=PEAK)
    return _mean_over_images(mean, reconstructed, originals)


def _mean_over_images(
    mean: Callable[[Tensor, Tensor], Tensor], reconstructed: NDArray[np.uint8], originals: NDArray[np.uint8]
) -> float:
    if reconstructed.shape != originals.shape or not len(originals):
        raise EvaluationError(
            f"cannot compare reconstructions {reconstructed.shape} with originals {originals.shape}: "
            "give both the same shape, with at least one image"
        )
    total = 0.0
    for part in slices(len(originals), HELD * originals[0].size, CHUNK):
        pair = [torch.from_numpy(images[part]).float() for images in (reconstructed, originals)]
        total += float(mean(*pair)) * len(pair[0])
    return total / len(originals)
