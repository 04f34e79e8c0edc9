"""The flow head: its direction, its loss, and the spread of its draws, against closed forms."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.support.continuous import check_guidance, check_recovery, normal, random, spread_of_draws
from tokenbridge.base.errors import UserError
from tokenbridge.model.denoising import TIME_SCALE, Predict
from tokenbridge.model.flow_head import FlowHead

MEAN = 0.7


def make_head(**changes: int) -> FlowHead:
    torch.manual_seed(0)
    return FlowHead(**({"dimensions": 2, "features": 2, "width": 32, "depth": 2} | changes))


def exact(spread: float, mean: float | Tensor = MEAN) -> Predict:
    """The velocity of the flow from N(0, 1) to N(mean, spread^2)."""

    def predict(x: Tensor, times: Tensor) -> Tensor:
        t = times[:, None] / TIME_SCALE
        slope = (t * spread**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * spread**2)
        return mean + slope * (x - t * mean)

    return predict


@pytest.mark.parametrize(
    ("spread", "of_5", "of_10", "of_25"),
    [(1.0, 0.995, 0.999, 1.000), (0.3, 0.308, 0.303, 0.301), (0.1, 0.133, 0.108, 0.102), (0.03, 0.103, 0.057, 0.035)],
)
@pytest.mark.parametrize("temperature", [1.0, 0.9, 0.0])
def test_with_the_exact_velocity_the_draws_have_the_known_spread(
    spread: float, of_5: float, of_10: float, of_25: float, temperature: float
) -> None:
    for steps, known in ((5, of_5), (10, of_10), (25, of_25)):
        head = make_head(dimensions=1, steps=steps)
        mean, found = spread_of_draws(lambda u, head=head: head._sample(exact(spread), u, temperature), 1)
        assert float(mean) == pytest.approx(MEAN, abs=1e-4)
        assert float(found) == pytest.approx(temperature * known, abs=6e-4)


def test_guidance_moves_the_mean_between_two_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance of N(0.9, 0.3^2) for the class and N(0.2, 0.3^2) for none gives N(0.2 + 3 (0.9 - 0.2), 0.3^2)."""
    check_guidance(make_head(dimensions=1, features=1, steps=25), partial(exact, 0.3), 0.301, monkeypatch)


def test_the_least_loss_is_that_of_the_exact_velocity() -> None:
    """It is not 0: Var[x - e | x_t] = s^2 / ((1 - t)^2 + t^2 s^2). A reversed time has a larger one."""
    head, count, spread = make_head(dimensions=1), 40_000, 0.3
    x, times, noise = MEAN + spread * normal(count, 1), random(count), normal(count, 1, seed=1)
    t = torch.special.ndtri(times.double()).sigmoid()
    known = (spread**2 / ((1 - t) ** 2 + t**2 * spread**2)).mean()
    least = head._noisy_loss(exact(spread), x, times, noise) / count
    assert float(least) == pytest.approx(float(known), rel=0.02)
    reversed_time = head._noisy_loss(lambda x, t: exact(spread)(x, TIME_SCALE - t), x, times, noise) / count
    assert reversed_time > 1.3 * least


@torch.no_grad()
def test_a_new_head_predicts_no_velocity() -> None:
    """So its loss is the variance of x - e: 1 + 1, of unit latents."""
    head, count = make_head(repeats=4), 20_000
    loss = head.loss(normal(count, 2), normal(count, 2, seed=1), random(count, head.loss_numbers)) / (2 * count)
    assert float(loss) == pytest.approx(2, rel=0.02)
    uniforms = random(7, head.draw_numbers)
    torch.testing.assert_close(head.draw(normal(7, 2), uniforms, 0.5), 0.5 * torch.special.ndtri(uniforms))


def test_a_trained_head_knows_the_mean_and_the_spread() -> None:
    check_recovery(make_head(width=64, steps=10, repeats=4))


def test_no_step_is_refused() -> None:
    with pytest.raises(UserError, match="steps is 0: a flow head needs at least 1"):
        make_head(steps=0)
