"""What the tests of the heads for continuous tokens share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tokenbridge.model.denoising import DenoisingHead, Predict
from tokenbridge.model.token_head import TokenHead

DIMENSIONS, FEATURES = 3, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return uniform random numbers. No seed gives the stream that ``normal`` makes its numbers from."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + 2**31))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomized(head: TokenHead) -> TokenHead:
    """Return the head with random weights, of which no output is 0."""
    for index, parameter in enumerate(head.parameters()):
        parameter.data = 0.1 * normal(*parameter.shape, seed=index)
    return head


def train(head: TokenHead, batch: Callable[[int], tuple[Tensor, Tensor]], steps: int, rate: float = 3e-3) -> TokenHead:
    """Train with Adam, with a rate that falls to 0; ``batch`` gives the features and values of a step."""
    optimizer = torch.optim.Adam(head.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        z, values = batch(step)
        loss = head.loss(z, values, random(len(z), head.loss_numbers, seed=step)) / values.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head


def spread_of_draws(sample: Callable[[Tensor], Tensor], numbers: int) -> tuple[Tensor, Tensor]:
    """Return the exact mean and standard deviation of ``sample(uniforms)`` if it is linear in its normal noise.

    The uniforms are [M, numbers], and belong to one dimension. Each row but the first has one noise of 1 and others 0.
    """
    noise = torch.cat([torch.zeros(1, numbers), torch.eye(numbers)])
    found = sample(torch.special.ndtr(noise.double()))[:, 0].double()
    return found[0], (found[1:] - found[0]).square().sum().sqrt()


def check_guidance(
    head: DenoisingHead, predict: Callable[[Tensor], Predict], spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that guidance of the predictions for two normals, whose means are the features, gives the one between them.

    Args:
        predict: gives the exact predictions for means [M, 1].
    """
    monkeypatch.setattr(head, "condition", torch.nn.Identity())
    monkeypatch.setattr(head, "_predict", predict)

    def sample(uniforms: Tensor) -> Tensor:
        return head.draw(torch.tensor([[0.9, 0.2]]).expand(len(uniforms), -1), uniforms, 1.0, torch.tensor(3.0))

    mean, found = spread_of_draws(sample, head.draw_numbers)
    assert float(mean) == pytest.approx(0.2 + 3 * (0.9 - 0.2), abs=1e-3)
    assert float(found) == pytest.approx(spread, abs=1.5e-3)


def check_recovery(head: TokenHead) -> None:
    """Train the head on normal latents [M, 2] whose mean depends on the features, and compare the moments of draws."""
    spread = 0.5

    def mean_of(z: Tensor) -> Tensor:
        return 0.7 * torch.tanh(z.flip(-1))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        z = normal(64, 2, seed=2 * step)
        return z, mean_of(z) + spread * normal(64, 2, seed=2 * step + 1)

    train(head, batch, 700)
    for z in torch.tensor([[0.0, 0.0], [0.5, -0.5], [-0.5, 0.8]]):
        with torch.no_grad():
            drawn = head.draw(z.expand(2000, 2), random(2000, head.draw_numbers), 1.0)
        assert (drawn.mean(dim=0) - mean_of(z)).abs().max() < 0.05
        assert (drawn.std(dim=0) / spread - 1).abs().max() < 0.1
