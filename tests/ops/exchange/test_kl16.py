"""KL-16 at its real size, with random weights: what LDM's arithmetic makes of them, diffusers' makes too."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ops.exchange.ldm import Autoencoder
from tests.support.checkout import CHECKOUT
from tokenbridge.cli import main
from tokenbridge.config import Config
from tokenbridge.ops.exchange.kl16 import import_vae
from tokenbridge.ops.exchange.weights import ImportFailedError
from tokenbridge.vae.autoencoder import load_vae


@pytest.fixture(scope="module")
def released() -> Autoencoder:
    torch.manual_seed(0)
    autoencoder = Autoencoder().eval()
    for module in autoencoder.modules():
        if isinstance(module, torch.nn.GroupNorm):  # or a swap of two norms would go unseen
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return autoencoder


def save(released: Autoencoder, file: Path, **changes: Tensor) -> Path:
    torch.save({"model": released.state_dict() | {"loss.logvar": torch.zeros(())} | changes}, file)
    return file


@torch.no_grad()
def test_the_imported_vae_encodes_and_decodes_as_the_released_one(
    released: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    main(["import", "vae", str(save(released, tmp_path / "kl16.ckpt")), "--out", str(tmp_path / "vae")])
    vae = load_vae(tmp_path / "vae")
    images, latents = torch.rand(1, 3, 32, 48) * 2 - 1, torch.randn(1, 16, 2, 3)
    assert sum(parameter.numel() for parameter in vae.parameters()) == 66_456_019
    assert len(vae.state_dict()) == 312
    torch.testing.assert_close(vae.encode(images).latent_dist.parameters, released.moments(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latents).sample, released.decode(latents), atol=2e-5, rtol=0)
    assert vae.config.scaling_factor == pytest.approx(0.2325)


def test_a_tensor_too_many_is_named(released: Autoencoder, released_config: Config, tmp_path: Path) -> None:
    file = save(released, tmp_path / "kl16.ckpt", **{"encoder.extra": torch.zeros(1)})
    with pytest.raises(ImportFailedError, match=r"Missing: nothing\. Left over: encoder\.extra"):
        import_vae(file, tmp_path / "vae", released_config)
    assert not (tmp_path / "vae").exists()
