"""What all heads that draw a whole token at once have in common: their randomness, their gradients, their types."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.support.continuous import DIMENSIONS, FEATURES, normal, random, randomized
from tokenbridge.model.bits_head import BitsHead
from tokenbridge.model.diffusion_head import DiffusionHead
from tokenbridge.model.flow_head import FlowHead
from tokenbridge.model.mixture_head import MixtureHead
from tokenbridge.model.token_head import TokenHead

SIZES = {"dimensions": DIMENSIONS, "features": FEATURES, "width": 16, "depth": 2}
POSITIONS = 6
MANY = 100  # so many draws of bits show each number
each_head = pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(DiffusionHead, **SIZES, steps=7, repeats=2), id="diffusion"),
        pytest.param(partial(FlowHead, **SIZES, steps=4, repeats=2), id="flow"),
        pytest.param(partial(MixtureHead, **SIZES, components=4), id="mixture"),
        pytest.param(partial(BitsHead, **SIZES, levels=4, steps=3, repeats=2), id="bits"),
        pytest.param(partial(BitsHead, **SIZES, levels=4, steps=6, repeats=2), id="bits one by one"),
    ],
)
Make = Callable[[], TokenHead]


def tokens(head: TokenHead, count: int) -> torch.Tensor:
    drawn = normal(count, DIMENSIONS, seed=1)
    return (drawn * 100).long() % 4 if isinstance(head, BitsHead) else drawn


@each_head
def test_a_position_does_not_depend_on_the_others(make: Make) -> None:
    head, z = randomized(make()), normal(POSITIONS, FEATURES)
    x, for_loss, for_draw = (
        tokens(head, POSITIONS),
        random(POSITIONS, head.loss_numbers),
        random(POSITIONS, head.draw_numbers),
    )
    drawn = head.draw(z, for_draw, 0.9)
    assert drawn.shape == (POSITIONS, DIMENSIONS)
    alone = [head.draw(*row, 0.9) for row in zip(z.split(1), for_draw.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(alone), drawn, rtol=1e-4, atol=1e-5)
    losses = [head.loss(*row) for row in zip(z.split(1), x.split(1), for_loss.split(1), strict=True)]
    torch.testing.assert_close(torch.stack(losses).sum(), head.loss(z, x, for_loss), rtol=1e-4, atol=1e-5)


@each_head
def test_every_number_counts_and_two_calls_agree(make: Make) -> None:
    head, z = randomized(make()), normal(MANY, FEATURES)
    x = tokens(head, MANY)
    for count, function in ((head.loss_numbers, partial(head.loss, z, x)), (head.draw_numbers, draw_of(head, z))):
        uniforms = random(MANY, count).clamp(0.05, 0.45)
        before = function(uniforms)
        assert torch.equal(function(uniforms), before)
        for index in range(count):
            other = uniforms.clone()
            other[:, index] += 0.5
            assert not torch.equal(function(other), before), index


def draw_of(head: TokenHead, z: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda uniforms: head.draw(z, uniforms, 1.0)


@each_head
def test_the_gradient_reaches_the_features_and_every_weight(make: Make) -> None:
    head, z = randomized(make()), normal(POSITIONS, FEATURES).requires_grad_()
    head.loss(z, tokens(head, POSITIONS), random(POSITIONS, head.loss_numbers)).backward()
    assert (z.grad.abs().sum(dim=-1) > 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


@each_head
def test_half_precision_around_the_head_changes_only_its_inputs(make: Make) -> None:
    head, z = randomized(make()), normal(POSITIONS, FEATURES).bfloat16()
    x, for_loss, for_draw = (
        tokens(head, POSITIONS),
        random(POSITIONS, head.loss_numbers),
        random(POSITIONS, head.draw_numbers),
    )
    expected = head.loss(z.float(), x, for_loss), head.draw(z.float(), for_draw, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.loss(z, x, for_loss), head.draw(z, for_draw, 1.0)
    assert [each.dtype for each in found] == [torch.float32, torch.float32]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    head.bfloat16()  # as FSDP gathers weights for mixed precision
    torch.testing.assert_close(head.loss(z, x, for_loss), expected[0], rtol=0.1, atol=0)
    assert head.draw(z, for_draw, 1.0).dtype == torch.float32


@each_head
def test_initialize_makes_the_head_new_again(make: Make) -> None:
    new, used = make(), randomized(make())
    for head in (new, used):
        torch.manual_seed(3)
        head.initialize()
    weights = zip(new.parameters(), used.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in weights)
    z = normal(POSITIONS, FEATURES)
    assert torch.isfinite(used.draw(z, random(POSITIONS, used.draw_numbers), 1.0)).all()
