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


@pytest.mark.parametrize(("limit", "encoded"), [("null", list(range(10))), ("5", [0, 1, 2, 6, 7])])
def test_a_limit_takes_images_of_every_class_of_a_sorted_split(
    repository: Path, limit: str, encoded: list[int], autocasts: set[str]
) -> None:
    settings = ["encode.flip=true", "encode.precision=bf16", "launcher.batch_size=4"]
    configure(repository, f"encode.images={limit}", *settings)
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
    labels = np.array([0] * 6 + [1] * 4)
    splits = {"train": (images, labels), "validation": (images[::-1], labels[::-1])}
    save_shards(repository / "data/images", splits, NAMES)
    torch.manual_seed(0)
    vae = build_vae(replace(VAE, dimensions=4), 8).eval()
    vae.save_pretrained(repository / "models/vae")
    encode.main()
    moments = Moments(repository / "data/moments")
    assert (moments.flips, moments.num_classes) == (2, 2)
    assert moments.labels.tolist() == labels[encoded].tolist()
    validation = Moments(repository / "data/validation_moments")
    assert validation.labels.tolist() == labels[::-1].tolist()
    torch.testing.assert_close(validation.read(torch.tensor([9])), moments.read(torch.tensor([0])))
    rows = torch.tensor([4, 0])
    for flip, pixels in enumerate((images, images[..., ::-1].copy())):
        expected = encode_moments(vae, pixels[[encoded[row] for row in rows]])
        torch.testing.assert_close(moments.read(rows, torch.full((2,), flip)), expected, atol=5e-3, rtol=5e-3)
    assert autocasts == {"bf16"}


def test_moments_beyond_float16_are_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(repository, "encode.images=null", "encode.precision=fp32")
    images, labels = np.full((4, 3, 8, 8), 200, np.uint8), np.arange(4) % 2
    save_shards(repository / "data/images", {"train": (images, labels), "validation": (images, labels)}, NAMES)
    vae = build_vae(replace(VAE, dimensions=4), 8)
    torch.nn.init.constant_(vae.quant_conv.bias, 1e5)
    vae.save_pretrained(repository / "models/vae")
    with pytest.raises(SystemExit):
        encode.main()
    assert "the moments, stored as float16, contain NaN or infinity" in capsys.readouterr().err
