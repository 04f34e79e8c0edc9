"""Sampling in float32: the tokens of the released code, and those of a CPU."""

import pytest
import torch
from torch import Tensor

from tests.model.golden import Golden, load_golden
from tests.model.test_golden import SAMPLES
from tokenbridge.config.model import GUIDED, GuidanceOn, SamplingSettings
from tokenbridge.model import layers
from tokenbridge.sampling import sampler
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.latents import to_sequence

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return load_golden(tmp_path_factory.mktemp("golden"))


def drawn(golden: Golden, settings: SamplingSettings, uniforms: Tensor, device: torch.device) -> Tensor:
    """Tokens that ``device`` samples for the golden labels and orders."""
    model, quantizer = golden.model.to(device), golden.quantizer.to(device)
    draws = Draws(golden.inputs["orders"], uniforms).to(device)
    return sample_tokens(model, quantizer, golden.inputs["labels"].to(device), draws, settings).cpu()


@pytest.mark.parametrize("name", SAMPLES)
def test_greedy_samples_are_the_released_codes(golden: Golden, device: torch.device, name: str) -> None:
    uniforms = torch.zeros(*golden.inputs["orders"].shape, 16)
    tokens = drawn(golden, SAMPLES[name], uniforms, device)
    assert torch.equal(tokens, golden.quantizer.cpu().encode(to_sequence(golden.expected[name])))


@pytest.mark.parametrize("guidance_on", GUIDED)
def test_graphs_of_the_head_draw_what_plain_calls_do(
    golden: Golden, device: torch.device, monkeypatch: pytest.MonkeyPatch, guidance_on: GuidanceOn
) -> None:
    steps = golden.inputs["orders"].shape[1]
    settings = SamplingSettings(steps, guidance_scale=2.0, guidance_on=guidance_on, temperature=0.9, top_p=0.95)
    uniforms = torch.rand(*golden.inputs["orders"].shape, 16, generator=torch.Generator().manual_seed(0))
    ours = drawn(golden, settings, uniforms, device)
    monkeypatch.setattr(sampler, "graphed", lambda function, _: function)
    assert torch.equal(ours, drawn(golden, settings, uniforms, device))


@pytest.mark.parametrize("guidance_on", GUIDED)
def test_no_step_waits_for_the_gpu(
    golden: Golden, device: torch.device, monkeypatch: pytest.MonkeyPatch, guidance_on: GuidanceOn
) -> None:
    monkeypatch.setattr(sampler, "graphed", lambda function, _: function)  # a capture waits
    monkeypatch.setattr(sampler, "check_finite", lambda *_: None)  # the one read, after all steps
    settings = SamplingSettings(steps=4, guidance_scale=2.0, guidance_on=guidance_on, temperature=0.9, top_p=0.95)
    draws = Draws(golden.inputs["orders"], torch.rand(*golden.inputs["orders"].shape, 16)).to(device)
    model, quantizer, labels = golden.model.to(device), golden.quantizer.to(device), golden.inputs["labels"].to(device)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        tokens = sample_tokens(model, quantizer, labels, draws, settings)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert tokens.shape == draws.uniforms.shape


def test_random_samples_are_those_of_a_cpu(
    golden: Golden, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SamplingSettings(steps=8, guidance_scale=2.0, temperature=0.9, top_p=0.95)
    uniforms = torch.rand(*golden.inputs["orders"].shape, 16, generator=torch.Generator().manual_seed(0))
    ours = drawn(golden, settings, uniforms, device)
    monkeypatch.undo()
    assert layers.UNFUSED == "cpu"
    assert torch.equal(ours, drawn(golden, settings, uniforms, torch.device("cpu")))
