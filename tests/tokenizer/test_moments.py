"""Moments on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.small_data import write_moments
from tokenbridge.base.arrays import ArraysError
from tokenbridge.tokenizer.moments import Moments, sample_posterior


def test_images_of_several_shards_are_read_in_the_order_asked(tmp_path: Path, vae_latents: torch.Tensor) -> None:
    moments = write_moments(tmp_path / "moments", vae_latents)
    indices = torch.tensor([40, 0, 63, 31, 32])
    torch.testing.assert_close(moments.read(indices)[:, :4], vae_latents[indices], atol=2e-2, rtol=1e-3)
    assert moments.labels[indices].tolist() == (indices % 3).tolist()


def test_flips_are_chosen_per_image(tmp_path: Path, vae_latents: torch.Tensor) -> None:
    moments = write_moments(tmp_path / "moments", vae_latents)
    read = moments.read(torch.tensor([3, 3]), torch.tensor([0, 1]))
    assert torch.equal(read[0].flip(-1), read[1])


def test_the_posterior_is_mean_plus_scaled_noise() -> None:
    moments = torch.cat([torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), np.log(4.0))], dim=1)
    assert torch.equal(sample_posterior(moments), torch.full((1, 1, 2, 2), 3.0))
    torch.testing.assert_close(sample_posterior(moments, torch.ones(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 5.0))


def test_moments_that_are_not_there_are_the_encoders_to_make(tmp_path: Path) -> None:
    with pytest.raises(ArraysError, match="dvc repro encode"):
        Moments(tmp_path)
