"""The diffusion head (MAR, arXiv 2406.11838): p(x | z) by denoising diffusion with a learned variance.

Step t adds noise to a latent x: x_t = sqrt(a_t) x + sqrt(1 - a_t) e. Here a_t is the share of the signal's variance
(often written with a bar), and e is normal. The network predicts e, and v, which places the log-variance of the reverse
step between its bounds (improved DDPM, arXiv 2102.09672).

The latents must have about unit variance.
"""

import math

import torch
from torch import Tensor

from tokenbridge.base.device import widest_float
from tokenbridge.base.errors import UserError
from tokenbridge.config.model import NOISE_STEPS
from tokenbridge.model.denoising import DenoisingHead, Predict
from tokenbridge.model.uniforms import to_normal

OFFSET = 0.008  # of the cosine schedule: without it, the first steps add hardly any noise
MAX_BETA = 0.999  # without this limit, the last step leaves no signal
LIMIT = 5.0  # of a predicted latent, in standard deviations


def signal_share(t: Tensor) -> Tensor:
    """Return the share a_t of the signal's variance at steps t, integers from -1 (no noise) to 999: cosine schedule."""
    last = t == NOISE_STEPS - 1
    uncapped = (t + 1 - last.to(t.dtype)).to(widest_float(t.device)) / NOISE_STEPS
    angles = (uncapped + OFFSET) / (1 + OFFSET) * (math.pi / 2)
    shares = angles.cos().square() / math.cos(OFFSET / (1 + OFFSET) * math.pi / 2) ** 2
    return torch.where(last, (1 - MAX_BETA) * shares, shares)


class DiffusionHead(DenoisingHead):
    """Predicts a latent by denoising it step by step.

    Args:
        steps: the number of sampling steps, evenly spread over the 1000 steps of training.
        repeats: the number of times and noises with which each position is trained.

    Raises:
        UserError: if there are not 2 to 1000 steps.
    """

    def __init__(
        self, *, dimensions: int, features: int, width: int, depth: int, steps: int = 100, repeats: int = 4
    ) -> None:
        if not 2 <= steps <= NOISE_STEPS:
            raise UserError(f"steps is {steps}: a diffusion head needs 2 to {NOISE_STEPS}")
        super().__init__(
            dimensions=dimensions,
            outputs=2 * dimensions,
            features=features,
            width=width,
            depth=depth,
            steps=steps,
            repeats=repeats,
        )
        self.draw_numbers = dimensions * steps  # the initial noise, and the noise of every step but the last

    def _noisy_loss(self, predict: Predict, values: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Return the summed squared error of the predicted noise, and the bound of ``_variance_bits``."""
        t = (times * NOISE_STEPS).long()
        share = signal_share(t)[:, None]
        noisy = share.sqrt().float() * values + (1 - share).sqrt().float() * noise
        predicted, v = predict(noisy, t).chunk(2, dim=-1)
        error = (noise - predicted).square()
        return error.sum() + _variance_bits(t, error.detach(), v).sum()

    def _sample(self, predict: Predict, uniforms: Tensor, temperature: float) -> Tensor:
        """Draw latents [M, C] by ancestral sampling.

        The temperature scales the noise of every step, but not the initial noise, as in the released code.

        Differs: the predicted latent is clamped to +-5. At t = 999 its error is 20,000 times that of the predicted
        noise. With a small network, this drove draws to values in the thousands.
        """
        x, *noises = (to_normal(part) for part in uniforms.split(self.dimensions, dim=-1))
        kept = torch.linspace(0, NOISE_STEPS - 1, self.steps, dtype=torch.float64).round().long()
        shares = signal_share(kept).tolist()
        for i in reversed(range(self.steps)):
            time = torch.full((1,), int(kept[i]), device=x.device)
            predicted, v = predict(x, time).chunk(2, dim=-1)
            share, before = shares[i], shares[i - 1] if i else 1.0
            beta = 1 - share / before
            latent = ((x - math.sqrt(1 - share) * predicted) / math.sqrt(share)).clamp(-LIMIT, LIMIT)
            x = (beta * math.sqrt(before) * latent + (1 - before) * math.sqrt(1 - beta) * x) / (1 - share)
            if i:
                most, least = math.log(beta), math.log(beta * (1 - before) / (1 - share))
                x = x + temperature * torch.exp(_between(least, most, v) / 2) * noises[-i]
        return x


def _between(least: Tensor | float, most: Tensor | float, v: Tensor) -> Tensor:
    """Return the log-variance that v places between its bounds: v = -1 is the least, v = 1 the most."""
    mix: Tensor = least + (v + 1) / 2 * (most - least)
    return mix


def _variance_bits(t: Tensor, squared_error: Tensor, v: Tensor) -> Tensor:
    """Return the KL divergence, in bits [M, C], of the predicted reverse step from the true one. It trains only v.

    Differs: it is 0 at t = 0. There the released code has the likelihood of 8-bit pixels, which latents are not, and
    the sampler never uses that variance.

    Args:
        squared_error: of the predicted noise [M, C], without gradient.
        v: [M, C].
    """
    inner = t.clamp(min=1)  # finite at t = 0 too
    share, before = signal_share(inner)[:, None], signal_share(inner - 1)[:, None]
    beta = 1 - share / before
    most, least = beta.log().float(), (beta * (1 - before) / (1 - share)).log().float()
    factor = (beta.square() / ((1 - beta) * (1 - share))).float()  # of the noise's error in that of the mean
    log_variance = _between(least, most, v)
    divergence = log_variance - least - 1 + (least - log_variance).exp()
    divergence = divergence + factor * squared_error * (-log_variance).exp()
    return divergence / (2 * math.log(2)) * (t > 0)[:, None]
