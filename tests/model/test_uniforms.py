"""Uniform numbers become classes and normal numbers with the wanted distributions."""

import math

import pytest
import torch

from tokenbridge.model.uniforms import to_class, to_normal


def test_classes_have_their_probabilities_up_to_a_factor() -> None:
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = to_class(grid, torch.tensor([2.0, 0.0, 5.0, 3.0]).expand(1000, -1))
    assert drawn.bincount(minlength=4).tolist() == [200, 0, 500, 300]


def test_normal_numbers_are_finite_and_have_the_distribution() -> None:
    ends = to_normal(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert ends.dtype == torch.float32
    assert ends.tolist() == pytest.approx([-5.2947, 0, 5.2947], abs=1e-3)
    grid = to_normal((torch.arange(10_000) + 0.5) / 10_000)
    assert float(grid.mean()) == pytest.approx(0, abs=1e-5)
    assert float(grid.std()) == pytest.approx(1, abs=1e-3)
    assert float((grid < 1).float().mean()) == pytest.approx((1 + math.erf(math.sqrt(0.5))) / 2, abs=1e-4)
