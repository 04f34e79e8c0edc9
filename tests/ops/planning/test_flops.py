"""Operations by formula against torch's own counter, for every model of conf/."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.planning.conftest import batch, composed, train_step
from tokenbridge.config import Config, TrainConfig
from tokenbridge.config.model import SamplingSettings
from tokenbridge.model.transformer import TokenBridgeTransformer
from tokenbridge.ops.planning.flops import (
    BLOCK,
    forward_flops,
    head_flops,
    masked_shares,
    recomputed_flops,
    sample_flops,
    train_flops,
    vae_flops,
)
from tokenbridge.ops.planning.sizes import Parameters, Sizes, fresh_model, meta_model
from tokenbridge.sampling.sampler import masked_counts

IMAGES = 2


def parts(config: Config) -> tuple[TokenBridgeTransformer, Sizes, TrainConfig]:
    (model,) = config.models.values()
    return meta_model(config, model), Sizes.of(config, model), model.train


def test_forward_and_backward_are_what_torch_counts(config: Config) -> None:
    model, sizes, _ = parts(config)
    masked = round(0.8 * sizes.positions)
    with FlopCounterMode(display=False) as counter:
        train_step(model, sizes, IMAGES, masked)()
    token_in = 2 * sizes.positions * sizes.dimensions * sizes.width  # tokens have no gradient
    formula = 3 * forward_flops(sizes, masked).total - token_in
    assert counter.get_total_flops() == pytest.approx(IMAGES * formula, rel=1e-3)


def test_each_part_is_what_torch_counts(config: Config) -> None:
    model, sizes, _ = parts(config)
    masked = round(0.8 * sizes.positions)
    values, _, labels, order = batch(sizes, IMAGES, "meta")
    with torch.no_grad(), FlopCounterMode(display=False) as encoder:
        encoded = model.encode(values, labels, order[:, masked:])
    with torch.no_grad(), FlopCounterMode(display=False) as decoder:
        model.decode(encoded, order[:, masked:])
    formula = forward_flops(sizes, masked)
    assert encoder.get_total_flops() == pytest.approx(IMAGES * formula.encoder, rel=1e-3)
    assert decoder.get_total_flops() == pytest.approx(IMAGES * formula.decoder, rel=1e-3)


def test_plain_attention_counts_as_the_fused_one() -> None:
    config = composed("model=tiny")
    _, sizes, _ = parts(config)
    step = train_step(fresh_model(config, config.models["tiny"]), sizes, IMAGES, sizes.positions // 2)
    with FlopCounterMode(display=False) as counter:
        step()
    token_in = 2 * sizes.positions * sizes.dimensions * sizes.width
    formula = 3 * forward_flops(sizes, sizes.positions // 2).total - token_in
    assert counter.get_total_flops() == pytest.approx(IMAGES * formula, rel=1e-3)


@pytest.mark.parametrize("kind", ["autoregressive", "parallel"])
def test_the_head_with_its_cache_is_what_torch_counts(kind: str) -> None:
    config = composed("model=tiny", f"models.tiny.head={kind}")
    model, sizes, _ = parts(config)
    z = torch.empty(3, sizes.width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.head.sample(z, lambda logits, _: logits.argmax(dim=-1))
    assert counter.get_total_flops() == pytest.approx(3 * head_flops(sizes, cached=True), rel=1e-3)


def test_training_takes_the_mean_over_the_masks(config: Config) -> None:
    _, sizes, recipe = parts(config)
    shares = masked_shares(sizes, recipe)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares) >= recipe.mask_ratio_min * sizes.positions
    least, most = (3 * forward_flops(sizes, masked).head for masked in (min(shares), max(shares)))
    assert least < train_flops(sizes, recipe).head < most


def test_checkpointing_repeats_the_blocks_and_nothing_else(config: Config) -> None:
    _, sizes, recipe = parts(config)
    forward, again = train_flops(sizes, recipe).total / 3, recomputed_flops(sizes, recipe).total
    assert 0.9 * forward < again < forward


@pytest.fixture(scope="module")
def large() -> Sizes:
    return parts(composed("experiment=imagenet_l"))[1]


@settings(deadline=None, max_examples=20)
@given(steps=st.integers(1, 256), start=st.floats(0, 0.9))
def test_guidance_costs_where_it_acts_and_the_head_runs_once(large: Sizes, steps: int, start: float) -> None:
    plain = SamplingSettings(steps=steps, guidance_scale=1)
    alone = sample_flops(large, plain)
    always = sample_flops(large, replace(plain, guidance_scale=3, guidance_schedule="constant"))
    late = sample_flops(large, replace(plain, guidance_scale=3, guidance_interval=(start, 1.0)))
    assert always.decoder == pytest.approx(2 * alone.decoder)
    assert alone.total <= late.total <= always.total
    assert alone.head == always.head == pytest.approx(head_flops(large, cached=True) * large.positions)


def test_confidence_runs_the_head_on_all_that_is_masked() -> None:
    _, sizes, _ = parts(composed("model=tiny"))
    ranked = sample_flops(sizes, SamplingSettings(steps=4, order="confidence"))
    drawn = [sizes.positions, *masked_counts(sizes.positions, 4)[:-1]]
    assert ranked.head == pytest.approx(head_flops(sizes, cached=True) * sum(drawn))


def test_flops_follow_parameters() -> None:
    """2 per parameter and token, the rule of thumb, in what a block's linear layers do."""
    config = composed("experiment=imagenet_h")
    model, sizes, _ = parts(config)
    assert Parameters.of(model).encoder * 2 == pytest.approx(sizes.encoder_depth * BLOCK * sizes.width**2, rel=0.01)


def test_the_vae_costs_what_its_size_suggests() -> None:
    """LDM's KL-f16 at 256 px: some hundred billion multiply-adds, the decoder more than the encoder."""
    encode, decode = vae_flops(composed("experiment=imagenet_l"))
    assert 1e11 < encode < decode < 1e12
