"""Stage ``vae`` with a codebook, up to the quantizer that takes it."""

import csv
from pathlib import Path

import pytest
import torch

from tests.evaluation.conftest import LABEL_NAMES, draw_shapes
from tests.evaluation.shards import save_shards
from tests.stages.conftest import configure
from tokenbridge.stages import encode, fit_quantizer, vae
from tokenbridge.tokenizer.fitting import load_quantizer
from tokenbridge.tokenizer.latents import to_sequence
from tokenbridge.tokenizer.moments import Moments, sample_posterior
from tokenbridge.vae.vector_quantization import load_codebook


@pytest.mark.pipeline
def test_the_trained_codebook_becomes_the_quantizer(repository: Path) -> None:
    settings = ["quantizer.codewords=16", "quantizer.fit_images=24", "vae.block_widths=[8,16]", "vae.batch_size=8"]
    settings += ["vae.epochs=2", "vae.discriminator.width=8", "vae.precision=fp32", "encode.precision=fp32"]
    configure(repository, "vae=vq", "quantizer=trained_codebook", *settings)
    splits = {"train": draw_shapes(24), "validation": draw_shapes(6, 1)}
    save_shards(repository / "data/images", splits, LABEL_NAMES)
    for stage in (vae, encode, fit_quantizer):
        stage.main()

    with (repository / "reports/vae/loss.csv").open() as file:
        assert 1 <= float(list(csv.DictReader(file))[-1]["perplexity"]) <= 16
    codebook = load_codebook(repository / "models/vae")
    assert codebook is not None
    quantizer, moments = load_quantizer(repository / "models/quantizer"), Moments(repository / "data/moments")
    latents = sample_posterior(moments.read(torch.arange(24)))
    tokens = quantizer.encode(to_sequence(quantizer.normalize(latents)))
    nearest = torch.cdist(to_sequence(latents), codebook).argmin(-1)
    assert (tokens[..., 0] == nearest).float().mean() > 0.999  # but for ties by rounding
    assert len(tokens.unique()) > 4
