"""``tokenbridge resize``: a model for another image size."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_model import random_model
from tests.support.small_pipeline import build_pipeline
from tokenbridge.cli import main
from tokenbridge.config.model import Trunk
from tokenbridge.ops.exchange.resize import resampled, resized
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

BUFFER = 2
SIDES = st.integers(2, 12)


def field(height: int, width: int) -> torch.Tensor:
    """Embeddings [1, P + S, 2] of random buffer positions, a constant, and a slope over the picture's height."""
    rows = (torch.arange(height) + 0.5) / height
    values = torch.stack([torch.full((height, width), 0.3), rows[:, None].expand(-1, width)], dim=-1)
    buffer = torch.randn(1, BUFFER, 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([buffer, values.flatten(0, 1)[None]], dim=1)


@settings(max_examples=50, derandomize=True)
@given(height=SIDES, width=SIDES, new=st.tuples(SIDES, SIDES))
def test_a_constant_and_a_slope_keep_their_values(height: int, width: int, new: tuple[int, int]) -> None:
    found, expected = resampled(field(height, width), (height, width), new), field(*new)
    assert torch.equal(found[:, :BUFFER], expected[:, :BUFFER])
    torch.testing.assert_close(found[..., 0], expected[..., 0])
    slope, wanted = (each[0, BUFFER:, 1].view(new) for each in (found, expected))
    edge = torch.tensor(2.5 / height).maximum(torch.tensor(2.5 / new[0]))  # where the filter sees beyond the picture
    inside = (wanted > edge) & (wanted < 1 - edge)
    torch.testing.assert_close(slope[inside], wanted[inside], atol=2e-3, rtol=0)
    assert (slope - wanted).abs().max() < 0.5 / min(height, new[0]) + 1e-3


@pytest.mark.parametrize(("trunk", "draft_depth"), [("masked", None), ("masked", 1), ("causal_raster", None)])
def test_the_same_size_is_the_same_model(trunk: Trunk, draft_depth: int | None) -> None:
    model = random_model(trunk, draft_depth=draft_depth)
    same = resized(model, (4, 4)).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("trunk", "positions"),
    [
        ("masked", {"encoder_position", "decoder_position"}),
        ("elements", {"encoder_position", "decoder_position"}),
        ("causal_random", {"input_position"}),
    ],
)
def test_only_positions_differ(trunk: Trunk, positions: set[str]) -> None:
    model = random_model(trunk)
    larger = resized(model, (8, 6))
    assert (larger.positions, larger.output_position.shape) == (48, (1, 48, 32))
    weights, others = model.state_dict(), larger.state_dict()
    differing = {name for name in weights if weights[name].shape != others[name].shape}
    assert differing == positions | {"output_position"}
    assert all(torch.equal(weights[name], others[name]) for name in set(weights) - differing)


def test_a_pipeline_of_another_size_draws(quantizer: DimensionwiseQuantizer, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    build_pipeline(random_model(), quantizer).save_pretrained(small)
    main(["resize", str(small), "--image-size", "16", "--out", str(large)])
    pipeline = TokenBridgePipeline.from_pretrained(large)
    assert pipeline.image_size == (16, 16)
    assert pipeline([0], 2).images[0].size == (16, 16)
    assert pipeline.class_names == TokenBridgePipeline.from_pretrained(small).class_names


@pytest.mark.parametrize("size", ["0", "1", "15"])
def test_a_size_between_positions_is_refused(quantizer: DimensionwiseQuantizer, tmp_path: Path, size: str) -> None:
    build_pipeline(random_model(), quantizer).save_pretrained(tmp_path / "small")
    with pytest.raises(SystemExit, match="a multiple of 2 pixels"):
        main(["resize", str(tmp_path / "small"), "--image-size", size, "--out", str(tmp_path / "large")])
    assert not (tmp_path / "large").exists()
