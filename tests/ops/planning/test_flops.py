"""What torch counts, against closed forms and against the real sampler."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.planning.conftest import composed
from tokenbridge.config import Config
from tokenbridge.config.model import SamplingSettings
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.model.schedule import masked_counts
from tokenbridge.ops.planning.flops import head_flops, sample_flops, vae_flops
from tokenbridge.ops.planning.sizes import Parameters, deepened, fresh_model, meta_model
from tokenbridge.ops.planning.steps import step_flops, train_flops
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.fitting import fit_quantizer

BLOCK = 24  # linear layers of a block, for each token and the square of the width: qkv, out, MLP
BACKWARD = 3  # forward, gradients of inputs and of weights
PARAMETERS = {"tiny": 2_358_816, "large": 486_889_472, "huge": 910_040_576}
TINY = ["experiment=paper", "generate.steps=4"]


def built(config: Config) -> TokenBridgeTransformer:
    (model,) = config.models.values()
    return meta_model(config, model)


def blocks(depth: int, length: int, width: int) -> float:
    return depth * (BLOCK * BACKWARD * length * width**2 + BACKWARD * 4 * length**2 * width)


def head_form(model: TokenBridgeTransformer) -> float:
    """Operations of forward and backward of the head, for one position."""
    sizes, slots, width = model.config, model.head.slots, model.config.head_width
    around = sizes.width * width + 2 * slots * width**2 + slots * width * model.head.classes
    modulation = sizes.head_depth * 6 * slots * width**2
    return 2 * BACKWARD * (around + modulation) + blocks(sizes.head_depth, slots, width)


def test_a_step_costs_what_the_closed_form_says(config: Config) -> None:
    model = built(config)
    (name,) = config.models
    assert Parameters.of(model).total == PARAMETERS.get(name, Parameters.of(model).total)
    sizes, masked = model.config, round(0.8 * model.positions)
    visible = sizes.buffer_size + model.positions - masked
    found = deepened(model, lambda one: step_flops(one, masked))
    tokens = 2 * 2 * model.positions * sizes.dimensions * sizes.width  # forward and weights: tokens have no gradient
    entry = 2 * BACKWARD * visible * sizes.width**2
    length, width = sizes.buffer_size + model.positions, sizes.width
    wanted = BACKWARD * masked * (20 * width**2 + 4 * length * width)  # the last block: keys and values of all
    decoder = blocks(sizes.decoder_depth - 1, length, width) + BACKWARD * 4 * length * width**2 + wanted
    assert found.encoder == pytest.approx(tokens + blocks(sizes.encoder_depth, visible, sizes.width), rel=1e-3)
    assert found.decoder == pytest.approx(entry + decoder, rel=1e-3)
    assert found.head == pytest.approx(masked * head_form(model), rel=1e-3)


def test_a_token_may_have_more_slots_than_dimensions() -> None:
    model = built(composed("experiment=paper", "quantizer=e8"))
    assert (model.head.slots, model.config.dimensions) == (9, 8)
    found = deepened(model, lambda one: step_flops(one, 13))
    assert found.head == pytest.approx(13 * head_form(model), rel=1e-3)


def test_a_step_of_a_causal_trunk_costs_what_the_closed_form_says() -> None:
    config = composed(*TINY, "models.tiny.trunk=causal_random", "models.tiny.decoder_depth=5")
    model, recipe = built(config), config.models["tiny"].train
    found = train_flops(model, recipe)
    length, width = model.buffer_size + model.positions - 1, model.config.width
    assert found.encoder == pytest.approx(2 * 2 * length * model.config.dimensions * width)  # of tokens alone
    assert found.decoder == pytest.approx(blocks(3 + 5, length, width))
    assert found.head == pytest.approx(model.positions * head_form(model), rel=1e-3)


def test_a_draft_adds_to_the_head_alone() -> None:
    """It has the head's sizes, but no gradient of its input."""
    plain, drafted = (built(composed(*TINY, f"models.tiny.draft_depth={depth}")) for depth in ("null", 2))
    without, found = step_flops(plain, 12), step_flops(drafted, 12)
    assert (found.encoder, found.decoder) == (without.encoder, without.decoder)
    sizes = drafted.config
    gradient = 2 * 12 * sizes.width * sizes.head_width
    assert found.head - without.head == pytest.approx(without.head - gradient, rel=1e-3)


def test_training_takes_the_mean_over_the_masks() -> None:
    config = composed(*TINY)
    model, recipe = built(config), config.models["tiny"].train
    least, most = (step_flops(model, masked).head for masked in (2, 16))
    assert least < train_flops(model, recipe).head < most
    every = train_flops(model, replace(recipe, mask_ratio_min=1.0))
    assert every.head == pytest.approx(most)


def test_a_smaller_share_for_the_head_saves_its_operations_and_those_of_the_last_block() -> None:
    config = composed(*TINY)
    model, recipe = built(config), config.models["tiny"].train
    recipe = replace(recipe, mask_ratio_min=1.0)  # every position is masked
    whole, quarter = (train_flops(model, replace(recipe, head_share=share)) for share in (1.0, 0.25))
    assert quarter.head == pytest.approx(0.25 * whole.head)
    assert quarter.encoder == pytest.approx(whole.encoder)
    length, width = model.buffer_size + 16, model.config.width
    of_a_position = BACKWARD * (20 * width**2 + 4 * length * width)  # query, output and MLP; attention
    assert (whole - quarter).decoder == pytest.approx(12 * of_a_position, rel=1e-3)
    assert train_flops(model, recipe).total == pytest.approx(step_flops(model, 16).total)


def test_checkpointing_repeats_the_blocks_and_nothing_else() -> None:
    """Nothing needs the result of a spatial block's last layer, so torch does not compute that again."""
    config = composed(*TINY)
    recipe = config.models["tiny"].train
    plain, again = (train_flops(built(config), recipe, checkpointed) for checkpointed in (False, True))
    assert 0.6 * plain.decoder / 3 < (again - plain).decoder < plain.decoder / 3
    assert 0.9 * plain.head / 3 < (again - plain).head < plain.head / 3


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize(
    "change",
    [
        "models.tiny.head=autoregressive",
        "models.tiny.head=parallel",
        "generate.guidance_refresh=3",
        "generate.guidance_on=output",
    ],
)
def test_sampling_costs_what_the_sampler_does(order: str, change: str) -> None:
    config = composed(*TINY, change, f"generate.order={order}", "generate.guidance_scale=3")
    latents = torch.randn(64, config.dimensions, 4, 4, generator=torch.Generator().manual_seed(1))
    quantizer = fit_quantizer(latents, config.quantizer)
    settings = config.generate
    draws = Draws.from_generators([torch.Generator().manual_seed(0)], 16, config.dimensions)
    model = fresh_model(config, config.models["tiny"]).eval()
    with FlopCounterMode(display=False) as counter:
        sample_tokens(model, quantizer, torch.zeros(1, dtype=torch.long), draws, settings)
    assert sample_flops(built(config), settings).total == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize(
    ("trunk", "changes"),
    [
        ("causal_raster", ["generate.steps=16"]),
        ("causal_random", ["generate.guidance_interval=[0.5,1]"]),
        ("causal_random", ["generate.order=confidence", "generate.guidance_scale=1"]),
        ("elements", ["generate.steps=24", "quantizer.order=natural"]),
        ("elements", ["generate.order=confidence", "quantizer.order=natural"]),
        ("causal_random", ["generate.guidance_on=output", "generate.guidance_interval=[0.5,1]"]),
    ],
)
def test_sampling_with_another_trunk_costs_what_the_sampler_does(trunk: str, changes: list[str]) -> None:
    config = composed(*TINY, f"models.tiny.trunk={trunk}", *changes)
    latents = torch.randn(64, config.dimensions, 4, 4, generator=torch.Generator().manual_seed(1))
    quantizer, model = fit_quantizer(latents, config.quantizer), fresh_model(config, config.models["tiny"]).eval()
    draws = Draws.from_generators([torch.Generator().manual_seed(0)], model.units, model.head.draw_numbers)
    with FlopCounterMode(display=False) as counter:
        sample_tokens(model, quantizer, torch.zeros(1, dtype=torch.long), draws, config.generate)
    assert sample_flops(built(config), config.generate).total == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_guidance_costs_where_it_acts_and_the_head_runs_once() -> None:
    model = built(composed(*TINY))
    plain = SamplingSettings(steps=4, guidance_scale=1)
    alone = sample_flops(model, plain)
    always = sample_flops(model, replace(plain, guidance_scale=3, guidance_schedule="constant"))
    late = sample_flops(model, replace(plain, guidance_scale=3, guidance_interval=(0.5, 1.0)))
    assert always.decoder == pytest.approx(2 * alone.decoder)
    assert alone.total < late.total < always.total
    assert alone.head == always.head == head_flops(model) * model.positions
    ranked = sample_flops(model, replace(plain, order="confidence"))
    assert ranked.head == head_flops(model) * (16 + sum(masked_counts(16, 4)[:-1]))


def test_the_vae_costs_what_its_size_suggests() -> None:
    """LDM's KL-f16 at 256 px: some hundred billion multiply-adds, the decoder more than the encoder."""
    encode, decode = vae_flops(composed("experiment=imagenet_l"))
    assert 1e11 < encode < decode < 1e12
