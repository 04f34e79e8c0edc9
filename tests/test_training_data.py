"""What a model is trained on."""

from pathlib import Path

import torch

from tests.small_data import write_moments
from tokenbridge.moments import sample_posterior
from tokenbridge.quantizer import DimensionwiseQuantizer, to_sequence
from tokenbridge.training_data import FreshTokens


def test_fresh_tokens_are_a_new_sample_of_a_random_flip(
    vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer, tmp_path: Path
) -> None:
    moments = write_moments(tmp_path / "moments", vae_latents)
    indices = torch.tensor([5, 40, 5])
    torch.manual_seed(1)
    drawn = FreshTokens(moments, quantizer).draw(indices)
    torch.manual_seed(1)
    posterior = moments.read(indices, torch.randint(2, (3,)))
    latents = quantizer.normalize(sample_posterior(posterior, torch.randn(3, 4, 4, 4)))
    assert torch.equal(drawn, quantizer.encode(to_sequence(latents)))
    assert not torch.equal(drawn[0], drawn[2])
