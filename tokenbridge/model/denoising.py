"""Heads that learn to remove noise from the latent of one position, given its features (MAR, arXiv 2406.11838).

The network is the small MLP of MAR's diffusion loss, with adaLN blocks. What it predicts, and how it samples, is up to
the heads: see diffusion_head.py and flow_head.py. In bits_head.py the noise is a mask, and the dimensions are bits.

Shapes: M positions, C dimensions, Z width of the features z, W width of the network, R repeats.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenbridge.model.layers import layer_norm
from tokenbridge.model.token_head import LayerNorm, Linear, TokenHead, initialize_layers
from tokenbridge.model.uniforms import to_normal

TIME_NUMBERS = 256  # in the sinusoidal embedding of the time
MAX_PERIOD = 10_000
TIME_SCALE = 1000  # of times from 0 to 1: the sinusoids are made for such numbers
TIME_STD = 0.02
MODULATIONS = 3  # of a block: shift, scale and gate

# the network's output [M, outputs] for noisy latents [M, C] at times [M], or at one time [1]
Predict = Callable[[Tensor, Tensor], Tensor]


def embed_time(times: Tensor) -> Tensor:
    """Return the sinusoidal embedding [M, 256] of times [M]: all cosines, then all sines."""
    half = TIME_NUMBERS // 2
    frequencies = torch.exp(torch.arange(half, device=times.device) * (-math.log(MAX_PERIOD) / half))
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class DenoisingBlock(nn.Module):
    """A residual MLP whose norm is scaled, shifted and gated by the condition (adaLN-zero)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.linear_in = Linear(width, width)
        self.linear_out = Linear(width, width)
        self.modulation = Linear(width, MODULATIONS * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the output [M, W] of x [M, W], with the condition [M, W]."""
        shift, scale, gate = self.modulation(condition).chunk(MODULATIONS, dim=-1)
        hidden = self.linear_in(torch.addcmul(shift, self.norm(x), 1 + scale))
        return torch.addcmul(x, gate, self.linear_out(F.silu(hidden)))


class DenoisingHead(TokenHead):
    """The network, and what the diffusion head and the flow head share.

    Args:
        outputs: the numbers that the network predicts for each position.
        steps: the number of sampling steps.
        repeats: the number of times and noises with which each position is trained (MAR's ``diffusion_batch_mul``).
    """

    guided = True

    def __init__(
        self, *, dimensions: int, outputs: int, features: int, width: int, depth: int, steps: int, repeats: int
    ) -> None:
        super().__init__()
        self.dimensions, self.steps, self.repeats = dimensions, steps, repeats
        self.loss_numbers = repeats * (1 + dimensions)  # a time and a noise for each
        self.numbers, self.outputs = repeats * MODULATIONS * width, repeats * outputs
        self.input = Linear(dimensions, width)
        self.time_in = Linear(TIME_NUMBERS, width)
        self.time_out = Linear(width, width)
        self.condition = Linear(features, width)
        self.blocks = nn.ModuleList(DenoisingBlock(width) for _ in range(depth))
        self.final_norm = layer_norm(width, affine=False)
        self.final_modulation = Linear(width, 2 * width)
        self.output = Linear(width, outputs)
        self.initialize()

    def initialize(self) -> None:
        """Initialize as in MAR: Xavier linears with zero bias, N(0, 0.02) time layers, zero adaLN and output.

        So the new network predicts 0.
        """
        initialize_layers(self)
        for layer in (self.time_in, self.time_out):
            nn.init.normal_(layer.weight, std=TIME_STD)
        nn.init.zeros_(self.output.weight)
        for name, parameter in self.named_parameters():
            if name.endswith("modulation.weight"):
                nn.init.zeros_(parameter)

    def denoise(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """Return the network's output [M, outputs] for noisy latents x [M, C].

        Args:
            times: [M], or [1] for all positions.
            condition: [M, W], which ``self.condition`` gave.
        """
        time = self.time_out(F.silu(self.time_in(embed_time(times))))
        condition = F.silu(time + condition)
        x = self.input(x)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        output: Tensor = self.output(torch.addcmul(shift, self.final_norm(x), 1 + scale))
        return output

    def _loss(self, z: Tensor, values: Tensor, uniforms: Tensor) -> Tensor:
        """Return the mean over the repeats of the loss."""
        condition, values = (each.repeat_interleave(self.repeats, dim=0) for each in (self.condition(z), values))
        times, noise = uniforms.view(len(values), 1 + self.dimensions).tensor_split([1], dim=-1)
        return self._noisy_loss(self._predict(condition), values, times[:, 0], to_normal(noise)) / self.repeats

    def _draw(self, z: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        return self._sample(self._predict(self.condition(z)), uniforms, temperature)

    def _draw_guided(
        self, z: Tensor, unconditional: Tensor, uniforms: Tensor, temperature: float, scale: Tensor
    ) -> Tensor:
        """Draw with the mixed prediction of both halves, which see the same noisy latent (MAR).

        What is predicted beside it, the diffusion head's variance, is that of the class.
        """
        predict = self._predict(self.condition(torch.cat([z, unconditional])))

        def mixed(x: Tensor, time: Tensor) -> Tensor:
            of_class, of_none = predict(x.repeat(2, 1), time).chunk(2)
            first, others = of_class.tensor_split([self.dimensions], dim=-1)
            return torch.cat([torch.lerp(of_none[:, : self.dimensions], first, scale), others], dim=-1)

        return self._sample(mixed, uniforms, temperature)

    def _predict(self, condition: Tensor) -> Predict:
        return lambda x, times: self.denoise(x, times, condition)

    @abstractmethod
    def _noisy_loss(self, predict: Predict, values: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Return the summed loss of values [R M, C] with normal noise [R M, C], at times given as uniforms [R M]."""

    @abstractmethod
    def _sample(self, predict: Predict, uniforms: Tensor, temperature: float) -> Tensor:
        """Draw latents [M, C] with the predictions of ``predict``; uniforms [M, draw_numbers]."""
