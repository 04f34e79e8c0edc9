"""KL-16 on a batch that would not fit a GPU's memory at once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.gpu.conftest import Sizes, composed
from tokenbridge.ops.exchange.kl16 import build_kl16
from tokenbridge.vae.autoencoder import decode_images, encode_moments

pytestmark = pytest.mark.gpu

LIMIT = 20 * 2**30  # bytes; a card of 24 GB has other things to hold


def test_a_batch_is_encoded_and_decoded_within_24_gb(
    device: torch.device, sizes: Sizes, record_property: Callable[[str, object], None]
) -> None:
    torch.manual_seed(0)
    vae = build_kl16(composed(device)).to(device).eval()
    shape = (sizes.batch, 3, sizes.pixels, sizes.pixels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    moments = encode_moments(vae, images)
    pictures = decode_images(vae, moments.chunk(2, dim=1)[0])
    assert pictures.shape == images.shape
    torch.testing.assert_close(moments[:2], encode_moments(vae, images[:2]), rtol=1e-2, atol=1e-2)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        record_property("peak", f"{peak / 2**30:.1f} GiB for {sizes.batch} images of {sizes.pixels} px")
        assert peak < LIMIT
