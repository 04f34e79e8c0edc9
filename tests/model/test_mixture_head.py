"""The mixture head: its density, its cells, and its draws, against closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from tests.support.continuous import normal, random, randomized, train
from tokenbridge.model.mixture_head import LEAST_SCALE, MixtureHead, log_interval


def make_head(**changes: int) -> MixtureHead:
    torch.manual_seed(0)
    sizes = {"dimensions": 2, "features": 3, "width": 32, "depth": 2, "components": 4}
    return MixtureHead(**(sizes | changes))


def random_head(**changes: int) -> MixtureHead:
    head = make_head(**changes)
    randomized(head)
    return head


def as_distribution(head: MixtureHead, z: Tensor) -> MixtureSameFamily:
    log_weights, means, scales = head.mixture(z)
    return MixtureSameFamily(Categorical(logits=log_weights), Independent(Normal(means, scales), 1))


def test_the_loss_is_the_negative_log_density() -> None:
    head, z, x = random_head(), normal(50, 3), normal(50, 2, seed=1)
    expected = -as_distribution(head, z).log_prob(x).sum()
    torch.testing.assert_close(head.loss(z, x, torch.empty(50, 0)), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("depth", [0, 2])
@torch.no_grad()
def test_a_new_head_is_the_standard_normal(depth: int) -> None:
    """So its loss is (1 + ln 2 pi) / 2 nats per dimension, of unit latents."""
    head, count = make_head(depth=depth, dimensions=8), 20_000
    loss = head.loss(normal(count, 3), normal(count, 8, seed=1), torch.empty(count, 0)) / (8 * count)
    assert float(loss) == pytest.approx((1 + math.log(2 * math.pi)) / 2, abs=0.005)


@torch.no_grad()
def test_the_density_has_integral_1() -> None:
    head, z = random_head(), normal(1, 3)
    step = 0.05
    axis = torch.arange(-10, 10, step)
    grid = torch.cartesian_prod(axis, axis)
    log_density = torch.stack([-head.loss(z, x[None], torch.empty(1, 0)) for x in grid[::4001]])
    torch.testing.assert_close(log_density, as_distribution(head, z).log_prob(grid[::4001]), rtol=1e-5, atol=1e-4)
    assert float(as_distribution(head, z).log_prob(grid).exp().sum() * step**2) == pytest.approx(1, abs=1e-3)


def test_a_trained_head_reaches_the_entropy_of_a_known_mixture() -> None:
    """Three modes for each of two labels. The loss less the entropy is what the head still has wrong."""
    centres = torch.tensor([[[1.0, 1.0], [-1.0, 0.5], [0.0, -1.0]], [[0.5, -0.5], [-0.5, -1.0], [-1.0, 1.2]]])
    weights, scales = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]), torch.tensor([0.1, 0.2, 0.3])
    head = make_head(features=2, width=32, components=6)

    def batch(step: int, count: int = 512) -> tuple[Tensor, Tensor]:
        labels = (random(count, seed=3 * step) < 0.5).long()
        modes = weights[labels].cumsum(-1) <= random(count, 1, seed=3 * step + 1)
        which = modes[:, :2].sum(-1)
        x = centres[labels, which] + scales[which, None] * normal(count, 2, seed=3 * step + 2)
        return torch.nn.functional.one_hot(labels, 2).float(), x

    train(head, batch, 600, rate=1e-2)
    z, x = batch(10_000, 20_000)
    labels = z.argmax(-1)
    components = Independent(Normal(centres[labels], scales[None, :, None].expand(len(z), 3, 2)), 1)
    entropy = -MixtureSameFamily(Categorical(weights[labels]), components).log_prob(x).mean()
    with torch.no_grad():
        loss = head.loss(z, x, torch.empty(len(x), 0)) / len(x)
    assert float(loss - entropy) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("dimensions", [1, 2])
@torch.no_grad()
def test_the_probabilities_of_all_cells_sum_to_1(dimensions: int) -> None:
    head, z = random_head(dimensions=dimensions), normal(4, 3)
    ends = torch.tensor([-math.inf, -2.0, -1.0, -0.3, 0.0, 0.5, 1.5, math.inf])
    cells = torch.cartesian_prod(*[torch.arange(len(ends) - 1)] * dimensions).view(-1, dimensions)
    for row in z.split(1):
        logs = head.log_cell_probabilities(row.expand(len(cells), -1), ends[cells], ends[cells + 1])
        assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_a_small_cell_has_its_density_times_its_size() -> None:
    head, z, x = random_head(), normal(20, 3), normal(20, 2, seed=1).double()
    size = 1e-3
    found = head.log_cell_probabilities(z, x - size / 2, x + size / 2)
    expected = as_distribution(head, z).log_prob(x) + 2 * math.log(size)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-4)


def test_cells_far_out_keep_their_probability() -> None:
    """Both tails alike; far out, an interval has about the probability of its tail from the end nearer to 0."""
    start = torch.tensor([5.0, 12.0, 40.0], dtype=torch.float64)
    above, below = log_interval(start, start + 1), log_interval(-start - 1, -start)
    torch.testing.assert_close(above, below)
    tail = torch.special.log_ndtr(-start)
    assert (above <= tail).all()
    assert (tail - above < 0.01).all()
    torch.testing.assert_close(log_interval(start, torch.full_like(start, math.inf)), tail)
    everything = log_interval(torch.tensor(-math.inf).double(), torch.tensor(math.inf).double())
    assert float(everything) == 0


@torch.no_grad()
def test_draws_have_the_moments_of_the_mixture() -> None:
    head, z, count = random_head(), normal(1, 3), 100_000
    known = as_distribution(head, z)
    drawn = head.draw(z.expand(count, -1), random(count, head.draw_numbers), 1.0)
    error = known.variance.sqrt() / math.sqrt(count)
    assert ((drawn.mean(dim=0) - known.mean).abs() < 5 * error).all()
    torch.testing.assert_close(drawn.var(dim=0)[None], known.variance, rtol=0.03, atol=0)


@torch.no_grad()
def test_the_temperature_scales_the_spread_within_a_component() -> None:
    head, z, uniforms = random_head(), normal(200, 3), random(200, 3)
    means = head.mixture(z)[1]
    full, half, none = (head.draw(z, uniforms, temperature) for temperature in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, (full + none) / 2)
    assert ((none[:, None] - means).abs().amax(dim=-1).amin(dim=-1) == 0).all()
    assert (full != none).any()


@torch.no_grad()
def test_the_first_number_chooses_the_component() -> None:
    head, z = random_head(), normal(1, 3)
    log_weights, means, _ = head.mixture(z)
    first = random(20_000, 1, seed=1)
    drawn = head.draw(z.expand(20_000, -1), torch.cat([first, torch.full((20_000, 2), 0.5)], dim=-1), 1.0)
    component = (drawn[:, None] - means).abs().sum(dim=-1).argmin(dim=-1)
    shares = torch.bincount(component, minlength=4) / 20_000
    torch.testing.assert_close(shares[None], log_weights.exp(), atol=0.015, rtol=0)
    order = component[first[:, 0].argsort()]
    assert (order.diff() >= 0).all()


def test_one_component_is_enough_and_no_scale_is_below_the_least() -> None:
    head, z = make_head(components=1), normal(5, 3)
    with torch.no_grad():
        head.output.bias.fill_(-1e6)
        _, _, scales = head.mixture(z)
        drawn = head.draw(z, random(5, 3), 1.0)
    assert scales.min() == scales.max() == pytest.approx(LEAST_SCALE)
    assert drawn.shape == (5, 2)


def test_the_small_head_has_the_known_size() -> None:
    head = make_head(dimensions=8, features=160, width=128, components=16)
    assert sum(parameter.numel() for parameter in head.parameters()) == 72_208
