"""The flow-matching head: p(x | z) by a rectified flow (Liu et al., arXiv 2209.03003; SphereAR, arXiv 2509.24335).

A straight path leads from normal noise e at t = 0 to a latent x at t = 1: x_t = (1 - t) e + t x. The network predicts
its velocity x - e. To sample, the ordinary differential equation of this velocity is solved from noise.

Differs: the network is that of MAR's diffusion loss (denoising.py), as for the diffusion head. SphereAR's has SwiGLU
blocks that share their modulation, and a position embedding, which the features here already contain.
"""

from itertools import pairwise

import torch
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.model.denoising import TIME_SCALE, DenoisingHead, Predict
from tokenbridge.model.uniforms import to_normal


class FlowHead(DenoisingHead):
    """Predicts a latent by following the velocity from noise to data.

    Args:
        steps: the number of sampling steps of Heun's method; each evaluates the network twice.
        repeats: the number of times and noises with which each position is trained.

    Raises:
        UserError: if there is no step.
    """

    def __init__(
        self, *, dimensions: int, features: int, width: int, depth: int, steps: int = 25, repeats: int = 4
    ) -> None:
        if steps < 1:
            raise UserError(f"steps is {steps}: a flow head needs at least 1")
        super().__init__(
            dimensions=dimensions,
            outputs=dimensions,
            features=features,
            width=width,
            depth=depth,
            steps=steps,
            repeats=repeats,
        )
        self.draw_numbers = dimensions  # the initial noise

    def _noisy_loss(self, predict: Predict, values: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Return the summed squared error of the velocity; t is logit-normal."""
        t = to_normal(times).sigmoid()
        predicted = predict(torch.lerp(noise, values, t[:, None]), TIME_SCALE * t)
        return (values - noise - predicted).square().sum()

    def _sample(self, predict: Predict, uniforms: Tensor, temperature: float) -> Tensor:
        """Draw latents [M, C] with Heun's method.

        Differs: the temperature scales the initial noise. SphereAR has none. For a normal p(x | z), it scales the
        spread of the draws exactly.
        """
        x = temperature * to_normal(uniforms)
        times = torch.arange(self.steps + 1, device=x.device)[:, None] * (TIME_SCALE / self.steps)
        for start, end in pairwise(times):
            first = predict(x, start)
            second = predict(x + first / self.steps, end)
            x = x + (first + second) / (2 * self.steps)
        return x
