"""PSNR and SSIM of uint8 images."""

import math

import numpy as np
import pytest

from tests.evaluation.conftest import draw_shapes
from tokenbridge.evaluation import EvaluationError
from tokenbridge.evaluation.reconstruction import psnr, ssim


def test_psnr_is_the_mean_over_images_not_that_of_the_pooled_error() -> None:
    originals = np.full((2, 3, 16, 16), 100, np.uint8)
    reconstructed = originals.copy()
    reconstructed[0] += 1
    reconstructed[1] += 10
    expected = np.mean([10 * math.log10(255**2 / error**2) for error in (1, 10)])
    assert psnr(reconstructed, originals) == pytest.approx(expected, abs=1e-3)


def test_a_perfect_reconstruction_has_ssim_1_and_infinite_psnr() -> None:
    images, _ = draw_shapes(4)
    assert ssim(images, images) == pytest.approx(1)
    assert psnr(images, images) == math.inf


def test_both_fall_with_noise() -> None:
    images, _ = draw_shapes(6)
    noise = np.random.default_rng(0).normal(size=images.shape)
    versions = [(images + s * noise).clip(0, 255).astype(np.uint8) for s in (30, 10, 3)]
    for metric in (psnr, ssim):
        values = [metric(version, images) for version in versions]
        assert values == sorted(values)


def test_more_images_than_are_compared_at_once_weigh_alike() -> None:
    images, _ = draw_shapes(510)
    noisy = (images + np.random.default_rng(0).normal(0, 10, images.shape)).clip(0, 255).astype(np.uint8)
    assert psnr(noisy, images) == pytest.approx(
        np.mean([psnr(noisy[i : i + 1], images[i : i + 1]) for i in range(510)])
    )


def test_sets_of_different_shapes_cannot_be_compared() -> None:
    images, _ = draw_shapes(4)
    with pytest.raises(EvaluationError, match=r"\(3, 3, 32, 32\)"):
        psnr(images[:3], images)
