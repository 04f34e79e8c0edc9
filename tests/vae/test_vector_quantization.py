"""A codebook trained with the VAE: its formulas, the posterior without variance, and trainings that resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vae.test_autoencoder import CONFIG, train
from tests.vae.test_autoencoder import images as images
from tokenbridge.tokenizer.moments import sample_posterior
from tokenbridge.vae.autoencoder import encode_moments
from tokenbridge.vae.training import VaeTrainer, build_vae
from tokenbridge.vae.vector_quantization import DECAY, RARE, VectorQuantizer, load_codebook, save_codebook

VQ = replace(CONFIG, codewords=32, epochs=1)
FAR = 1000.0


def latents_of(seed: int, count: int = 4) -> Tensor:
    """Latents [count, 3, 2, 2]."""
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def quantizer_of(codebook: Tensor, counts: Tensor | None = None) -> VectorQuantizer:
    quantizer = VectorQuantizer(*codebook.shape)
    quantizer.codebook = codebook
    quantizer.counts = torch.full((len(codebook),), FAR) if counts is None else counts
    return quantizer


def test_the_nearest_codeword_is_taken_and_the_commitment_is_the_distance_to_it() -> None:
    codebook, latents = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), latents_of(0)
    found, commitment = quantizer_of(codebook)(latents)
    points = latents.movedim(1, -1).flatten(0, 2)
    distances = (points[:, None] - codebook).double().square().sum(-1)
    nearest = codebook[distances.argmin(1)]
    torch.testing.assert_close(found.movedim(1, -1).flatten(0, 2), nearest)
    torch.testing.assert_close(commitment, (points - nearest).square().mean())


def test_the_gradient_passes_as_if_nothing_were_quantized() -> None:
    latents, weights = latents_of(0).requires_grad_(), latents_of(1)
    found, _ = quantizer_of(torch.zeros(2, 3))(latents)
    (found * weights).sum().backward()
    assert torch.equal(latents.grad, weights)


def test_the_commitment_pulls_latents_and_the_average_pulls_codewords() -> None:
    codebook, latents = torch.tensor([[0.0, 0.0, 0.0], [FAR, FAR, FAR]]), latents_of(0).requires_grad_()
    quantizer = quantizer_of(codebook, counts=torch.tensor([10.0, 10.0]))
    quantizer(latents)[1].backward()
    torch.testing.assert_close(latents.grad, 2 * latents.detach() / latents.numel())
    count, total = 16, latents.detach().sum((0, 2, 3))
    kept = DECAY * 10
    torch.testing.assert_close(quantizer.codebook[0], (1 - DECAY) * total / (kept + (1 - DECAY) * count))
    torch.testing.assert_close(quantizer.counts, torch.tensor([kept + (1 - DECAY) * count, kept]))
    assert torch.equal(quantizer.codebook[1], codebook[1])


def test_the_first_batch_gives_all_codewords_and_later_ones_only_the_rare() -> None:
    quantizer, latents = VectorQuantizer(8, 3), latents_of(0)
    quantizer._replace_rare(latents.movedim(1, -1).flatten(0, 2))
    points = {tuple(point) for point in latents.movedim(1, -1).flatten(0, 2).tolist()}
    assert {tuple(word) for word in quantizer.codebook.tolist()} <= points
    even = 16 / 8
    counts = torch.full((8,), even).index_fill_(0, torch.tensor([3]), 0.99 * RARE * even)
    used = quantizer_of(torch.full((8, 3), FAR), counts)
    used._replace_rare(latents.movedim(1, -1).flatten(0, 2))
    assert tuple(used.codebook[3].tolist()) in points
    assert (used.codebook[torch.arange(8) != 3] == FAR).all()
    assert torch.equal(used.counts, torch.full((8,), even))


def test_a_codeword_without_latents_begins_again_after_some_steps() -> None:
    codebook = torch.tensor([[0.0, 0.0, 0.0], [FAR, FAR, FAR]])
    quantizer = quantizer_of(codebook, counts=torch.tensor([8.0, 8.0]))
    for seed in range(300):
        quantizer(latents_of(seed))
    assert quantizer.codebook.abs().max() < 10


def test_the_perplexity_is_the_number_of_equally_frequent_codewords() -> None:
    quantizer = quantizer_of(torch.zeros(8, 3), counts=torch.tensor([3.0] * 5 + [0.0] * 3))
    assert quantizer.perplexity.item() == pytest.approx(5)


def test_a_training_improves_reconstructions_and_uses_many_codewords(images: np.ndarray) -> None:
    torch.manual_seed(0)
    pixels = torch.from_numpy(images).float() / 127.5 - 1
    config = replace(VQ, loss=replace(VQ.loss, adversarial=0.0))
    trainer = VaeTrainer(config, build_vae(config, 16).train(), 40, torch.device("cpu"))
    steps = [trainer.step(pixels[8 * (i % 8) :][:8], i) for i in range(40)]
    first, last = (sum(step["reconstruction_loss"] for step in part) for part in (steps[:8], steps[-8:]))
    assert last < 0.7 * first
    assert steps[-1]["perplexity"] > 8
    assert not steps[-1]["commitment_loss"].isnan()


def test_posteriors_have_no_variance_before_and_after_the_training(images: np.ndarray, tmp_path: Path) -> None:
    for vae in (build_vae(VQ, 16).eval(), train(VQ, images, tmp_path / "checkpoint")[0]):
        moments = encode_moments(vae, images[:4])
        mean = sample_posterior(moments)
        torch.testing.assert_close(sample_posterior(moments, torch.randn_like(mean)), mean, rtol=0, atol=2e-6)
        assert mean.std() > 0.01


def test_a_killed_training_resumes_with_the_same_bits(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, codebook, losses = train(VQ, images, tmp_path / "whole")
    step = VaeTrainer.step

    def killed(self: VaeTrainer, batch: Tensor, index: int) -> dict[str, Tensor]:
        if index == 5:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VaeTrainer, "step", killed)
        train(VQ, images, tmp_path / "resumed")
    again, codebook_again, losses_again = train(VQ, images, tmp_path / "resumed")
    assert losses_again == losses
    assert torch.equal(codebook_again, codebook)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_a_codebook_is_saved_with_its_vae(tmp_path: Path) -> None:
    assert load_codebook(tmp_path) is None
    codebook = torch.randn(5, 3)
    save_codebook(codebook, tmp_path)
    assert torch.equal(load_codebook(tmp_path), codebook)
