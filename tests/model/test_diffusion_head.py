"""The diffusion head: its schedule, its loss, and the spread of its draws, against closed forms and diffusers."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from tests.support.continuous import check_guidance, check_recovery, normal, random, spread_of_draws
from tokenbridge.base.errors import UserError
from tokenbridge.model.denoising import Predict, embed_time
from tokenbridge.model.diffusion_head import LIMIT, NOISE_STEPS, DiffusionHead, signal_share

MEAN = 0.7


def make_head(**changes: int) -> DiffusionHead:
    torch.manual_seed(0)
    return DiffusionHead(**({"dimensions": 2, "features": 2, "width": 32, "depth": 2} | changes))


def scheduler(steps: int, clip: bool = False) -> DDPMScheduler:
    made = DDPMScheduler(
        NOISE_STEPS,
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample=clip,
        clip_sample_range=LIMIT,
    )
    made.set_timesteps(steps)
    return made


def exact(spread: float, steps: int, variance: str, mean: float | Tensor = MEAN) -> Predict:
    """The best prediction for x ~ N(mean, spread^2), with a choice of the variance of the reverse step.

    ``best`` adds the variance of the true x given x_t to the least variance.
    """
    kept = torch.linspace(0, NOISE_STEPS - 1, steps, dtype=torch.float64).round().long()
    before = dict(zip(kept.tolist(), [1.0, *signal_share(kept).tolist()], strict=False))

    def predict(x: Tensor, times: Tensor) -> Tensor:
        share, last = float(signal_share(times)), before[int(times)]
        total = share * spread**2 + 1 - share
        noise = math.sqrt(1 - share) * (x - math.sqrt(share) * mean) / total
        v = {"least": -1.0, "most": 1.0}.get(variance, 0.0)
        if variance == "best" and last < 1:
            beta = 1 - share / last
            least = beta * (1 - last) / (1 - share)
            factor = beta * math.sqrt(last) / (1 - share)
            best = least + factor**2 * spread**2 * (1 - share) / total
            v = 2 * math.log(best / least) / math.log(beta / least) - 1
        return torch.cat([noise, torch.full_like(noise, v)], dim=-1)

    return predict


def spread_found(spread: float, steps: int, variance: str, temperature: float = 1.0) -> float:
    head, predict = make_head(dimensions=1, steps=steps), exact(spread, steps, variance)
    mean, found = spread_of_draws(lambda uniforms: head._sample(predict, uniforms, temperature), head.draw_numbers)
    assert float(mean) == pytest.approx(MEAN, abs=1e-3)
    return float(found)


@pytest.mark.parametrize(
    ("spread", "steps", "least", "best", "most"),
    [
        (1.0, 10, 0.810, 1.000, 1.000),
        (1.0, 25, 0.916, 1.000, 1.000),
        (1.0, 100, 0.977, 1.000, 1.000),
        (0.3, 10, 0.209, 0.300, 0.367),
        (0.3, 25, 0.252, 0.300, 0.324),
        (0.3, 100, 0.284, 0.300, 0.306),
        (0.1, 10, 0.044, 0.100, 0.200),
        (0.1, 25, 0.068, 0.100, 0.129),
        (0.1, 100, 0.087, 0.100, 0.106),
        (0.03, 10, 0.008, 0.029, 0.178),
        (0.03, 25, 0.012, 0.029, 0.077),
        (0.03, 100, 0.021, 0.029, 0.037),
    ],
)
def test_with_the_exact_noise_the_draws_have_the_known_spread(
    spread: float, steps: int, least: float, best: float, most: float
) -> None:
    found = [spread_found(spread, steps, variance) for variance in ("least", "best", "most")]
    assert found == pytest.approx([least, best, most], abs=1.5e-3)


def test_guidance_moves_the_mean_between_two_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spread is that of the class: the variance of ``none`` is not asked."""

    def predict(means: Tensor) -> Predict:
        of_half = exact(0.3, 25, "best", means)

        def halves(x: Tensor, times: Tensor) -> Tensor:
            noise, v = of_half(x, times).chunk(2, dim=-1)
            of_none = torch.arange(len(v))[:, None] >= len(v) // 2
            return torch.cat([noise, v.masked_fill(of_none, 9.0)], dim=-1)

        return halves

    check_guidance(make_head(dimensions=1, features=1, steps=25), predict, 0.3, monkeypatch)


@pytest.mark.parametrize("spread", [1.0, 0.3])
def test_the_temperature_scales_the_spread_of_many_steps(spread: float) -> None:
    assert spread_found(spread, 100, "best", 0.9) == pytest.approx(0.9 * spread, abs=2e-3)


def test_the_schedule_is_that_of_diffusers() -> None:
    shares = signal_share(torch.arange(NOISE_STEPS))
    torch.testing.assert_close(shares.float(), scheduler(10).alphas_cumprod, rtol=2e-3, atol=1e-7)
    assert float(signal_share(torch.tensor(-1))) == 1
    assert float(shares[0]) == pytest.approx(0.99996, abs=1e-5)
    assert float(shares[-1]) == pytest.approx(2.4e-9, rel=0.02)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [2, 10, 25, 1000])
def test_the_sampler_is_that_of_diffusers(steps: int, clip: bool) -> None:
    """Good predictions are never clamped. The poor ones here are."""
    head, theirs = make_head(steps=steps), scheduler(steps, clip)

    def poor(x: Tensor, times: Tensor) -> Tensor:
        bounded = torch.tanh(x + times / NOISE_STEPS)
        return torch.cat([bounded, -bounded], dim=-1)

    predict = poor if clip else exact(0.3, steps, "most")
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(5, 2, generator=generator) for _ in range(steps)]
    uniforms = torch.special.ndtr(torch.cat(noises, dim=-1).double())
    generator.manual_seed(0)
    x = torch.randn(5, 2, generator=generator)
    for time in theirs.timesteps:
        x = theirs.step(predict(x, time), int(time), x, generator=generator).prev_sample
    torch.testing.assert_close(head._sample(predict, uniforms, 1.0), x, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_draws_are_bounded() -> None:
    head = make_head(steps=10)
    assert head.draw(normal(50, 2), random(50, head.draw_numbers), 1.0).abs().max() <= LIMIT


@torch.no_grad()
def test_a_new_head_predicts_no_noise_and_the_middle_variance() -> None:
    """So its loss is 1 for the noise, and the mean over the steps of the known divergence for the variance."""
    head, count = make_head(repeats=4), 20_000
    uniforms = random(count, head.loss_numbers)
    uniforms.view(-1, 3)[:, 0] = (torch.arange(4 * count) + 0.5) / (4 * count)  # every step equally often
    found = head.loss(normal(count, 2), normal(count, 2, seed=1), uniforms) / (2 * count)
    angles = (np.arange(NOISE_STEPS + 1) / NOISE_STEPS + 0.008) / 1.008 * np.pi / 2
    betas = np.minimum(1 - np.cos(angles[1:]) ** 2 / np.cos(angles[:-1]) ** 2, 0.999)
    shares = np.cumprod(1 - betas)
    beta, share, before = betas[1:], shares[1:], shares[:-1]
    least = beta * (1 - before) / (1 - share)
    predicted = np.sqrt(beta * least)
    distance = beta**2 / ((1 - beta) * (1 - share))  # of the means, for a squared error of 1
    divergence = np.log(predicted / least) + (least + distance) / predicted - 1
    assert float(found) == pytest.approx(1 + divergence.sum() / NOISE_STEPS / 2 / np.log(2), rel=0.02)


def test_the_variance_term_trains_only_the_variance() -> None:
    """If the predicted noise is exact, the least variance (v = -1) is the true one, and the term is 0."""
    head, x = make_head(repeats=1), torch.zeros(2000, 2)
    noise, times = normal(2000, 2), random(2000)
    predicted = noise.clone().requires_grad_()
    v = torch.full((2000, 2), -1.0, requires_grad=True)
    loss = head._noisy_loss(lambda *_: torch.cat([predicted, v], dim=-1), x, times, noise)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-2)
    loss.backward()
    assert predicted.grad.abs().max() == 0
    assert v.grad.abs().max() < 1e-5
    wrong = head._noisy_loss(lambda *_: torch.cat([predicted + 1, v], dim=-1), x, times, noise)
    (gradient,) = torch.autograd.grad(wrong, predicted)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2))  # of the squared error alone


@pytest.mark.pipeline  # for its time alone
def test_a_trained_head_knows_the_mean_and_the_spread() -> None:
    check_recovery(make_head(width=64, steps=50, repeats=4))


def test_the_time_embedding_has_cosines_before_sines() -> None:
    found = embed_time(torch.tensor([0, 3]))
    assert found.shape == (2, 256)
    assert found[0].tolist() == [1.0] * 128 + [0.0] * 128
    assert found[1, [0, 128]].tolist() == pytest.approx([math.cos(3), math.sin(3)])
    assert float(found[1, 64]) == pytest.approx(math.cos(3 / 100))


def test_the_small_head_has_the_known_size() -> None:
    head = make_head(dimensions=8, features=160, width=128, depth=3)
    assert sum(parameter.numel() for parameter in head.parameters()) == 354_704


@pytest.mark.parametrize("steps", [1, 1001])
def test_other_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=f"steps is {steps}: a diffusion head needs 2 to 1000"):
        make_head(steps=steps)
