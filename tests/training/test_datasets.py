"""What a model is trained on."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.small_data import store_tokens, write_moments
from tokenbridge.base.seeding import generator
from tokenbridge.tokenizer.latents import to_sequence
from tokenbridge.tokenizer.moments import sample_posterior
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.training.datasets import FreshTokens, Prefetcher


def test_fresh_tokens_are_a_new_sample_of_a_random_flip(
    vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer, tmp_path: Path
) -> None:
    moments = write_moments(tmp_path / "moments", vae_latents)
    indices = torch.tensor([5, 40, 5])
    drawn = FreshTokens(moments, quantizer).draw(indices, generator(1))
    random = generator(1)
    posterior = moments.read(indices, torch.randint(2, (3,), generator=random))
    latents = quantizer.normalize(sample_posterior(posterior, torch.randn(3, 4, 4, 4, generator=random)))
    assert torch.equal(drawn, quantizer.encode(to_sequence(latents)))
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("stored", [False, True])
def test_the_parts_of_a_batch_add_up_to_it(
    vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer, tmp_path: Path, stored: bool
) -> None:
    moments = write_moments(tmp_path / "moments", vae_latents)
    data = store_tokens(tmp_path, moments, quantizer) if stored else FreshTokens(moments, quantizer)
    indices = torch.arange(20)
    parts = [data.draw(indices, generator(1), part) for part in (slice(0, 7), slice(7, 20))]
    assert torch.equal(torch.cat(parts), data.draw(indices, generator(1)))


@given(start=st.integers(0, 10), total=st.integers(1, 12))
def test_what_is_made_ahead_is_what_is_asked_for(start: int, total: int) -> None:
    made: list[int] = []
    ahead = Prefetcher(lambda step: made.append(step) or step, total)  # type: ignore[func-returns-value]
    steps = range(min(start, total), total)
    assert [ahead.take(step) for step in steps] == list(steps)
    assert made == list(steps)
