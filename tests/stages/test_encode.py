"""Stage ``encode``."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.shards import save_shards
from tests.stages.conftest import configure
from tests.vae.test_autoencoder import CONFIG as VAE
from tokenbridge.stages import encode
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.vae.autoencoder import encode_moments
from tokenbridge.vae.training import build_vae

NAMES = ["light", "dark"]


@pytest.mark.parametrize(("limit", "encoded"), [("null", 10), ("7", 7)])
def test_moments_of_the_first_images_asked_for(repository: Path, limit: str, encoded: int) -> None:
    settings = ["encode.flip=true", "encode.precision=fp32", "launcher.batch_size=4"]
    configure(repository, f"encode.images={limit}", *settings)
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
    splits = {"train": (images, np.arange(10) % 2), "validation": (images[::-1], np.arange(1, 11) % 2)}
    save_shards(repository / "data/images", splits, NAMES)
    torch.manual_seed(0)
    vae = build_vae(replace(VAE, dimensions=4), 8).eval()
    vae.save_pretrained(repository / "models/vae")
    encode.main()
    moments = Moments(repository / "data/moments")
    assert (len(moments), moments.flips, moments.num_classes) == (encoded, 2, 2)
    assert moments.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1][:encoded]
    validation = Moments(repository / "data/validation_moments")
    assert (len(validation), validation.labels.tolist()) == (10, [1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
    torch.testing.assert_close(validation.read(torch.tensor([9])), moments.read(torch.tensor([0])))
    indices = torch.tensor([6, 0])
    for flip, pixels in enumerate((images, images[..., ::-1].copy())):
        expected = encode_moments(vae, pixels[indices.numpy()])
        torch.testing.assert_close(moments.read(indices, torch.full((2,), flip)), expected, atol=5e-3, rtol=5e-3)
