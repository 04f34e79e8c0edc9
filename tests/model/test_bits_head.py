"""The bits head: its code, its loss, and its draws, against closed forms."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.support.continuous import normal, random, randomized
from tests.support.small_model import small_model
from tokenbridge.base.errors import UserError
from tokenbridge.model.bits_head import ALL_MASKED, VISIBLE_WEIGHT, BitsHead, masked_bits, to_levels, to_signs


def make_head(**changes: int) -> BitsHead:
    torch.manual_seed(0)
    sizes = {"dimensions": 2, "levels": 4, "features": 3, "width": 16, "depth": 1, "steps": 4}
    return BitsHead(**(sizes | changes))


@pytest.mark.parametrize("bits", [1, 2, 6, 8, 10])
def test_every_level_has_its_own_code_and_neighbours_differ_in_one_bit(bits: int) -> None:
    levels = torch.arange(2**bits)[:, None]
    signs = to_signs(levels, bits)
    assert torch.equal(to_levels(signs, bits), levels)
    assert (signs.diff(dim=0).abs().sum(dim=-1) == 2).all()  # one sign of -1 and 1


def test_a_token_is_its_levels_one_after_the_other_with_the_highest_bit_first() -> None:
    signs = to_signs(torch.tensor([[4, 1]]), 3)  # Gray codes 110 and 001
    assert signs.tolist() == [[1, 1, -1, -1, -1, 1]]


@pytest.mark.parametrize(
    ("spread", "of_binary", "of_gray"), [(1, 1.01, 0.125), (2, 0.97, 0.174), (4, 0.80, 0.184), (8, 0.45, 0.152)]
)
def test_independent_bits_lose_less_with_the_gray_code(spread: float, of_binary: float, of_gray: float) -> None:
    """In bits, for normal distributions of levels, with the mean at different places."""
    levels = torch.arange(64)
    binary = 2 * (levels[:, None] >> torch.arange(6) & 1) - 1
    means = torch.linspace(10, 54, 200, dtype=torch.float64)
    joint = (-((levels - means[:, None]) ** 2) / (2 * spread**2)).softmax(dim=-1)
    for signs, known in ((binary, of_binary), (to_signs(levels[:, None], 6), of_gray)):
        is_set = (signs > 0).double()
        alone = -(joint @ is_set).xlogy(joint @ is_set) - (joint @ (1 - is_set)).xlogy(joint @ (1 - is_set))
        lost = (alone.sum(dim=-1) + joint.xlogy(joint).sum(dim=-1)) / math.log(2)  # total correlation
        assert float(lost.mean()) == pytest.approx(known, abs=0.01)


def test_the_loss_weighs_masked_and_visible_bits() -> None:
    head, seen = make_head(dimensions=1, steps=2), []

    def predict(signs: Tensor, times: Tensor) -> Tensor:
        seen.extend([signs, times])
        return torch.tensor([[0.5, -0.3]])

    level = torch.tensor([[2]])  # Gray code 11
    loss = head._noisy_loss(predict, level, torch.tensor([0.5]), torch.tensor([[-1.0, 1.0]]))  # half of two bits
    masked, visible = math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.3))
    assert seen[0].tolist() == [[0, 1]]
    assert seen[1].tolist() == [500]
    assert float(loss) == pytest.approx(2 * (masked + VISIBLE_WEIGHT * visible) / (1 + VISIBLE_WEIGHT))


def test_a_tenth_of_the_tokens_is_masked_wholly_and_half_of_the_bits_of_the_others() -> None:
    counts = masked_bits((torch.arange(10_000) + 0.5) / 10_000, 48)
    assert counts.min() >= 1
    assert float((counts == 48).float().mean()) == pytest.approx(ALL_MASKED, abs=0.001)
    assert float(counts[counts < 48].mean()) == pytest.approx(24, abs=0.05)
    assert masked_bits(torch.tensor([0.1000001]), 3).item() == 1


@torch.no_grad()
def test_a_new_head_knows_nothing() -> None:
    """So its loss is ln B for each dimension, whatever is masked."""
    head, count = make_head(repeats=3), 50
    levels = torch.arange(2 * count).view(count, 2) % 4
    loss = head.loss(normal(count, 3), levels, random(count, head.loss_numbers)) / (2 * count)
    assert float(loss) == pytest.approx(math.log(4), rel=1e-5)


@pytest.mark.parametrize(("bits", "steps", "known"), [(16, 4, [2, 3, 5, 6]), (48, 48, [1] * 48), (12, 1, [12])])
def test_the_steps_draw_more_and_more_bits(bits: int, steps: int, known: list[int]) -> None:
    assert make_head(dimensions=bits, levels=2, steps=steps).counts == known


def opinionated() -> BitsHead:
    """A head whose bits depend much on each other."""
    head = randomized(make_head())
    for parameter in head.parameters():
        parameter.data *= 5
    return head


def joint(head: BitsHead, z: Tensor) -> Tensor:
    """The probabilities of all 16 tokens, for each of the 24 orders of their bits."""
    tokens = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    orders = torch.tensor(list(itertools.permutations(range(4))))
    pairs = tokens.repeat(len(orders), 1), orders.repeat_interleave(16, dim=0)
    return head.log_probabilities(z.expand(len(pairs[0]), -1), *pairs).exp().view(len(orders), 16)


@torch.no_grad()
def test_with_one_bit_a_step_the_draws_have_exactly_the_distribution_of_the_model() -> None:
    head, z, count = opinionated(), normal(1, 3), 20_000
    each_order = joint(head, z)
    torch.testing.assert_close(each_order.sum(dim=-1), torch.ones(24))
    assert (each_order[0] - each_order[-1]).abs().max() > 0.01
    drawn = head.draw(z.expand(count, -1), random(count, head.draw_numbers), 1.0).long()
    expected = count * each_order.mean(dim=0)
    found = (4 * drawn[:, 0] + drawn[:, 1]).bincount(minlength=16)
    independent = count * torch.outer(*(expected.view(4, 4).sum(dim=axis) / count for axis in (1, 0))).flatten()

    def distance(known: Tensor) -> float:
        return float(((found - known).square() / known).sum())

    assert distance(expected) < 37.7  # of 15 degrees of freedom: exceeded once in a thousand seeds
    assert distance(independent) > 100


@torch.no_grad()
def test_fewer_steps_take_the_likeliest_bits_first() -> None:
    """At temperature 0, two steps of one bit give the likelier bit, then the likelier value of the other."""
    head, z = opinionated(), normal(40, 3)
    head.counts, head.steps = [1, 1, 1, 1], 3  # any number other than that of the bits
    drawn = head.draw(z, random(40, head.draw_numbers), 0.0)
    assert torch.equal(drawn, head.draw(z, random(40, head.draw_numbers, seed=1), 0.0))
    expected = torch.zeros(40, 4)
    condition = head.condition(z)
    for left in (4, 3, 2, 1):
        logits = head.denoise(expected, head._time(torch.tensor([left])), condition)
        surest = logits.abs().masked_fill(expected != 0, -1).argmax(dim=-1, keepdim=True)
        expected.scatter_(1, surest, logits.gather(1, surest).sign())
    assert torch.equal(drawn, to_levels(expected, 2).float())


@torch.no_grad()
def test_a_logit_that_is_not_finite_shows_in_the_draw() -> None:
    head = make_head()
    head.output.bias[2] = torch.nan
    assert head.draw(normal(5, 3), random(5, head.draw_numbers), 1.0).isnan().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 6}, "levels is 6: a bits head needs a power of 2"),
        ({"levels": 1}, "levels is 1: a bits head needs a power of 2"),
        ({"steps": 5}, "steps is 5: a bits head of 2 x 2 bits needs 1 to 4"),
        ({"steps": 0}, "steps is 0: a bits head of 2 x 2 bits needs 1 to 4"),
    ],
)
def test_tokens_without_whole_bits_and_too_many_steps_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_head(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": None}, "are the heads of continuous tokens"),
        ({"head_group": 2}, "only autoregressive and parallel heads have head_group"),
        ({"draft_depth": 1}, "only autoregressive and parallel heads have draft_depth"),
        ({"released_slot0": True}, "only autoregressive and parallel heads have released_slot0"),
    ],
)
def test_a_model_with_what_bits_do_not_have_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_model(head="bits", **changes)
