"""The likelihood of levels under a mixture: in nats, by closed form."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from tests.support.small_data import write_moments
from tests.support.small_model import QUANTIZER, small_model
from tests.support.small_pipeline import build_pipeline
from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.config.model import Trunk
from tokenbridge.ops.runs.cell_loss import cell_loss, cells
from tokenbridge.tokenizer.continuous import ContinuousLatents
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.training.datasets import ALL, FreshTokens
from tokenbridge.training.validation import Validation


def test_the_cells_of_tokens_are_what_the_quantizer_gives_them(quantizer: DimensionwiseQuantizer) -> None:
    tokens = torch.randint(8, (100, 4), generator=torch.Generator().manual_seed(0))
    lower, upper = cells(quantizer.levels, tokens)
    inside = 1e-4
    for latents in (lower.clamp(min=-9) + inside, upper.clamp(max=9) - inside):
        assert torch.equal(quantizer.encode(latents), tokens)


@pytest.mark.parametrize("trunk", ["masked", "causal_raster"])
def test_a_mixture_that_has_learned_nothing_codes_levels_as_the_standard_normal(
    tmp_path: Path, trunk: Trunk, vae_latents: Tensor, quantizer: DimensionwiseQuantizer
) -> None:
    """The components of a new head are all alike, and their means are nearly 0."""
    model = small_model(trunk, head="mixture", levels=None)
    latents = ContinuousLatents(4).filled({"loc": quantizer.loc, "scale": quantizer.scale})
    build_pipeline(model, latents).save_pretrained(tmp_path / "models/tiny")
    write_moments(tmp_path / "data/moments", vae_latents)
    validation_moments = write_moments(tmp_path / "data/validation_moments", vae_latents)

    validation = Validation(FreshTokens(validation_moments, quantizer), quantizer, SINGLE_PROCESS)
    tokens = torch.cat([validation.batch(number, ALL, model).tokens for number in range(validation.batches)])
    lower, upper = cells(quantizer.levels, tokens.flatten(0, 1))
    expected = -(Normal(0, 1).cdf(upper) - Normal(0, 1).cdf(lower)).log().mean()
    assert cell_loss(tmp_path, QUANTIZER, 0) == pytest.approx(float(expected), rel=0.02)
