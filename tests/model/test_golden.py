"""Parity with the released model: its weights, imported; same inputs, same outputs, in float32 on a CPU."""

import pytest
import torch
from torch import Tensor

from tests.model.golden import Golden, load_golden
from tokenbridge.config.model import SamplingSettings
from tokenbridge.model.layers import gather
from tokenbridge.model.transformer import split_order
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.latents import to_maps, to_sequence
from tokenbridge.tokenizer.levels import gaussian_levels

SAMPLES = {
    "sample_cfg1_iter5": SamplingSettings(steps=5, guidance_scale=1.0, temperature=0),
    "sample_cfg2.5_linear_iter5": SamplingSettings(5, 2.5, "linear", temperature=0),
    "sample_cfg1.5_constant_iter16": SamplingSettings(16, 1.5, "constant", temperature=0),
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return load_golden(tmp_path_factory.mktemp("golden"))


def masked_first(mask: Tensor) -> tuple[Tensor, int]:
    """An order whose first positions are the masked ones, and their number."""
    return (mask == 0).int().argsort(dim=1, stable=True), int(mask[0].sum())


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def test_level_values(golden: Golden) -> None:
    # theirs were computed in float32
    assert difference(gaussian_levels(64).float(), golden.expected["reconstruction_values"]) < 1e-5


def test_tokens_and_their_values(golden: Golden) -> None:
    tokens = golden.quantizer.encode(to_sequence(golden.inputs["latents"]))
    assert torch.equal(tokens, golden.expected["indices"])
    assert difference(golden.quantizer.decode(tokens), golden.expected["dequantized"]) < 1e-6


def test_encoder_decoder_logits_and_loss(golden: Golden) -> None:
    tokens, labels = golden.expected["indices"], golden.inputs["labels"]
    values, targets = golden.quantizer.decode(tokens), golden.quantizer.to_head_order(tokens)
    order, num_masked = masked_first(golden.inputs["mask"])
    masked, visible = split_order(order, num_masked)
    with torch.no_grad():
        encoded = golden.model.encode(values, labels, visible)
        z = golden.model.decode(encoded, visible)
        logits = golden.model.head(gather(z, masked).flatten(0, 1), gather(targets, masked).flatten(0, 1))
        loss = golden.model(values, targets, labels, order, num_masked)
    assert difference(encoded, golden.expected["encoder"]) < 2e-5
    assert difference(z, golden.expected["decoder"]) < 2e-5
    assert difference(logits, golden.expected["logits"]) < 2e-5
    assert difference(loss, golden.expected["loss"]) < 1e-5


@pytest.mark.parametrize("released_slot0", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
def test_greedy_samples(golden: Golden, name: str, released_slot0: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding that the released sampler adds to slot 0 is zero in the golden data, so both ways agree."""
    assert golden.model.config.released_slot0
    assert golden.model.head.released_slot0
    monkeypatch.setattr(golden.model.head, "released_slot0", released_slot0)
    orders = golden.inputs["orders"]
    draws = Draws(orders, torch.zeros(*orders.shape, 16))
    tokens = sample_tokens(golden.model, golden.quantizer, golden.inputs["labels"], draws, SAMPLES[name])
    theirs = golden.expected[name]
    assert torch.equal(tokens, golden.quantizer.encode(to_sequence(theirs)))
    assert difference(to_maps(golden.quantizer.decode(tokens), 4, 4), theirs) < 1e-5
