"""The VAE: pixels in and out, and its training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tests.support.checkout import CHECKOUT
from tests.support.small_data import write_images
from tests.support.small_model import LAUNCHER, Silent
from tokenbridge.base.checkpoints import Checkpoints
from tokenbridge.base.loading import LoadError
from tokenbridge.base.slices import VALUES, images_at_once, slices
from tokenbridge.config import VaeConfig
from tokenbridge.config.params import compose_config, validate
from tokenbridge.config.tokenizer import DiscriminatorConfig, VaeLossConfig
from tokenbridge.ops.planning.sizes import meta_vae
from tokenbridge.ops.planning.steps import HeldBytes
from tokenbridge.vae.autoencoder import decode_images, encode_moments, held_values, load_vae, to_bytes, to_unit_range
from tokenbridge.vae.discriminator import PatchDiscriminator, adversarial_gradient
from tokenbridge.vae.training import build_vae, reconstruction_loss, train_vae

CONFIG = VaeConfig(
    pretrained=None,
    block_widths=[8, 16],
    layers_per_block=1,
    dimensions=2,
    codewords=None,
    batch_size=8,
    epochs=2,
    optimizer="muon",
    learning_rate=2e-3,
    muon_learning_rate=0.02,
    precision="fp32",
    loss=VaeLossConfig(l1=1.0, mse=0.5, kl=1e-5, adversarial=0.5),
    discriminator=DiscriminatorConfig(width=8, learning_rate=1e-3, start=0.3),
)


@pytest.fixture
def images() -> np.ndarray:
    """64 images [3, 16, 16]: a bright square somewhere on black."""
    generator = np.random.default_rng(0)
    images = np.zeros((64, 3, 16, 16), np.uint8)
    for image, (row, column), shade in zip(
        images, generator.integers(0, 10, (64, 2)), generator.integers(100, 255, 64), strict=True
    ):
        image[:, row : row + 6, column : column + 6] = shade
    return images


def train(config: VaeConfig, images: np.ndarray, checkpoint: Path) -> tuple[AutoencoderKL, Tensor | None, list[float]]:
    vae, codebook, history = train_vae(
        config,
        write_images(checkpoint.parent / uuid4().hex, images, np.zeros(len(images), int)),
        seed=0,
        checkpoints=Checkpoints(checkpoint),
        launcher=LAUNCHER,
        tracker=Silent(),
        device=torch.device("cpu"),
    )
    return vae, codebook, [row["reconstruction_loss"] for row in history]


def test_bytes_survive_the_unit_range() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1)
    assert np.array_equal(to_bytes(to_unit_range(every)), every)
    assert to_bytes(torch.full((1, 3, 1, 1), 7.0)).tolist() == [[[[255]]] * 3]


def test_shapes_and_file_round_trip(images: np.ndarray, tmp_path: Path) -> None:
    vae = build_vae(CONFIG, 16).eval()
    moments = encode_moments(vae, images[:4])
    assert moments.shape == (4, 4, 8, 8)
    decoded = decode_images(vae, moments[:, :2])
    assert decoded.shape == (4, 3, 16, 16)
    assert decoded.dtype == np.uint8
    vae.save_pretrained(tmp_path)
    assert torch.equal(encode_moments(load_vae(tmp_path), images[:4]), moments)


def test_slices_change_no_result(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, sizes = build_vae(CONFIG, 16).eval(), []
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    moments = encode_moments(vae, images[:5])
    decoded = decode_images(vae, moments[:, :2])
    monkeypatch.setattr("tokenbridge.base.slices.VALUES", 2 * held_values(vae, 16, 16))
    sliced = encode_moments(vae, images[:5])
    torch.testing.assert_close(sliced, moments)  # up to rounding, which depends on the number of images
    np.testing.assert_allclose(decode_images(vae, sliced[:, :2]).astype(int), decoded, atol=1)
    assert sizes == [5, 5, 2, 2, 1, 2, 2, 1]


def kl16() -> AutoencoderKL:
    return meta_vae(validate(compose_config(["experiment=imagenet_l"], CHECKOUT / "conf")))


def small() -> AutoencoderKL:
    return meta_vae(validate(compose_config([], CHECKOUT / "conf")))


def stable_diffusion() -> AutoencoderKL:
    downs, ups = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    widths = (128, 256, 512, 512)
    with torch.device("meta"):
        return AutoencoderKL(block_out_channels=widths, layers_per_block=2, down_block_types=downs, up_block_types=ups)


@pytest.mark.parametrize("build", [kl16, small, stable_diffusion])
@pytest.mark.parametrize("size", [32, 256, 512])
def test_a_slice_fits_into_the_memory_and_uses_half_of_it(build: Callable[[], AutoencoderKL], size: int) -> None:
    """250 images of 256 pixels at once took 39 GiB in KL-16."""
    vae = build()
    count = images_at_once(held_values(vae, size, size), most=10**9)
    pixels = torch.empty(count, 3, size, size, device="meta")
    with torch.no_grad(), HeldBytes() as encoding:
        latents = vae.encode(pixels).latent_dist.mean
    with torch.no_grad(), HeldBytes() as decoding:
        vae.decode(latents)
    limit = 4 * VALUES
    assert encoding.most <= 1.01 * limit
    assert 0.5 * limit <= decoding.most <= 1.01 * limit


@pytest.mark.parametrize(("build", "size"), [(kl16, 32), (small, 32), (small, 64)])
def test_a_batch_of_small_images_is_one_slice(build: Callable[[], AutoencoderKL], size: int) -> None:
    assert len(slices(250, held_values(build(), size, size))) == 1


@pytest.mark.pipeline
def test_it_learns_and_its_discriminator_plays(images: np.ndarray, tmp_path: Path) -> None:
    _, _, losses = train(replace(CONFIG, epochs=20), images, tmp_path / "checkpoint.pt")
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.pipeline  # for its time alone
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_same_seed_gives_the_same_bits(
    images: np.ndarray, tmp_path: Path, optimizer: Literal["adamw", "muon"]
) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    first, second = (train(config, images, tmp_path / f"{i}.pt")[0] for i in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_overshooting_black_and_white_costs_nothing() -> None:
    target = torch.tensor([-1.0, 1.0, 0.0])
    assert reconstruction_loss(torch.tensor([-1.5, 1.5, 0.0]), target, CONFIG) == 0
    assert reconstruction_loss(torch.tensor([-0.5, 1.0, 0.0]), target, CONFIG) > 0


def test_the_adversarial_gradient_has_the_norm_asked_for() -> None:
    torch.manual_seed(0)
    fake, like = torch.rand(2, 3, 16, 16) - 0.5, torch.randn(2, 3, 16, 16)
    gradient = adversarial_gradient(PatchDiscriminator(8), fake, like)
    torch.testing.assert_close(gradient.norm(), like.norm())


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    build_vae(CONFIG, 16).save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    weights.pop("encoder.conv_in.weight")
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"encoder\.conv_in\.weight"):
        load_vae(tmp_path)
