"""Other VAEs and other shapes: each trains a step, samples, and edits, all the way from pixels to pixels."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from tests.support.small_data import write_moments
from tests.support.small_model import QUANTIZER, SHAPE
from tests.training.conftest import run
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.tokenizer.moments import fitting_latents
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.vae.autoencoder import encode_moments

IMAGES = 4
CLASSES = [str(i) for i in range(SHAPE["num_classes"])]


@dataclass(frozen=True)
class Case:
    """``stride`` and ``dimensions`` are the VAE's."""

    height: int
    width: int
    stride: int
    dimensions: int
    patch_size: int = 1

    def vae(self) -> AutoencoderKL:
        """Stable Diffusion's layout (attention in the middle, quant convolutions), at width 8."""
        depth = self.stride.bit_length()
        return AutoencoderKL(
            block_out_channels=(8,) * depth,
            down_block_types=("DownEncoderBlock2D",) * depth,
            up_block_types=("UpDecoderBlock2D",) * depth,
            latent_channels=self.dimensions,
            norm_num_groups=4,
            sample_size=self.height,
        ).eval()

    def images(self) -> np.ndarray:
        """Smooth colours, uint8 [IMAGES, 3, height, width]."""
        coarse = torch.rand(IMAGES, 3, 4, 4)
        return (F.interpolate(coarse, (self.height, self.width), mode="bicubic").clamp(0, 1) * 255).byte().numpy()


CASES = {
    "four dimensions, stride 8, as Stable Diffusion": Case(64, 64, stride=8, dimensions=4),
    "stride 4": Case(32, 32, stride=4, dimensions=8),
    "a wide image": Case(32, 96, stride=8, dimensions=4),
    "a tall image in patches": Case(64, 32, stride=4, dimensions=4, patch_size=2),
    "patches of two": Case(64, 64, stride=8, dimensions=4, patch_size=2),
    "512 pixels, as KL-16": Case(512, 512, stride=16, dimensions=16),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_trains_a_step_and_samples(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, images = case.vae(), case.images()
    means, _ = encode_moments(vae, images).chunk(2, dim=1)
    moments = write_moments(tmp_path / "moments", means)
    config = replace(QUANTIZER, patch_size=case.patch_size, fit_images=IMAGES)
    quantizer = fit_quantizer(fitting_latents(moments, IMAGES, seed=0), config)

    trained = run(tmp_path / "run", FreshTokens(moments, quantizer), batch_size=IMAGES)
    assert len(trained.history) == 1
    assert np.isfinite(trained.history[0]["loss"])

    pipeline = TokenBridgePipeline(vae, trained.model.eval(), quantizer, CLASSES)
    pictures = pipeline(["0", "1"], num_inference_steps=2).images
    assert [picture.size for picture in pictures] == [(case.width, case.height)] * 2
    step = case.stride * case.patch_size
    keep = np.ones((case.height // step, case.width // step), dtype=bool)
    keep[0] = False
    edited = pipeline.edit(images[:2], keep, ["0", "1"], num_inference_steps=2).images
    assert [picture.size for picture in edited] == [(case.width, case.height)] * 2
