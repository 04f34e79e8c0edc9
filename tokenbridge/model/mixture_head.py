"""The mixture head (GIVT, arXiv 2312.02116): p(x | z) is a mixture of k Gaussians with diagonal covariance.

Shapes: M positions, C dimensions, k components, Z width of the features z, W width of the layers.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenbridge.base.device import widest_float
from tokenbridge.model.token_head import Linear, TokenHead, exact, initialize_layers
from tokenbridge.model.uniforms import to_class, to_normal

LEAST_SCALE = 1e-3  # of a component, in units of the normalised latents
MEAN_STD = 0.02  # of the new components' means


class Layer(nn.Module):
    """A linear layer with SiLU."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.linear(x))


class MixtureHead(TokenHead):
    """Predicts the weights, means and scales of the components over a whole token.

    Differs: ``depth`` layers come before GIVT's only linear layer, because the spatial transformer here is small. With
    depth 0 there are none. The least scale is 1e-3, not 1e-6: otherwise the density grows without bound on a dimension
    that hardly varies. Guidance mixes the features z, and each position takes one draw. GIVT mixes two densities and
    draws by rejection, so the number of its draws is not known before.

    Args:
        components: k.
    """

    def __init__(self, *, dimensions: int, features: int, width: int, depth: int, components: int = 16) -> None:
        super().__init__()
        self.dimensions, self.components = dimensions, components
        self.loss_numbers = 0
        self.draw_numbers = 1 + dimensions  # one for the component
        widths = [features, *[width] * depth]
        self.blocks = nn.ModuleList(Layer(before, after) for before, after in pairwise(widths))
        self.output = Linear(widths[-1], components * (1 + 2 * dimensions))
        self.outputs = self.output.out_features
        self.numbers = max(widths[-1], self.outputs)
        self.initialize()

    def initialize(self) -> None:
        """Initialize as in GIVT: all components alike, with mean 0 and scale 1, because the output's weights are 0.

        Differs: the means start at N(0, 0.02). Components that are exactly equal have equal gradients, so they would
        stay equal.
        """
        initialize_layers(self)
        nn.init.zeros_(self.output.weight)
        start, end = self.components, self.components * (1 + self.dimensions)
        with torch.no_grad():
            self.output.bias[start:end].normal_(std=MEAN_STD)

    def mixture(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-weights [M, k], means [M, k, C] and scales [M, k, C]."""
        for block in self.blocks:
            z = block(z)
        of_all = self.components * self.dimensions
        logits, means, raw = self.output(z).split([self.components, of_all, of_all], dim=-1)
        means, raw = (each.unflatten(-1, (self.components, self.dimensions)) for each in (means, raw))
        scales = (raw + (raw.square() + 4).sqrt()) / 2  # squareplus
        return logits.log_softmax(dim=-1), means, scales.clamp(min=LEAST_SCALE)

    def log_cell_probabilities(self, z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the log-probability [M] that x lies between ``lower`` and ``upper``, each [M, C] or infinite.

        For the cell of a token in a quantizer, this is the token's log-likelihood. It can be compared with that of the
        heads for quantized tokens.
        """
        with exact(z.device):
            log_weights, *others = (each.to(widest_float(z.device)) for each in self.mixture(z.float()))
        means, scales = others
        start, end = ((ends[:, None] - means) / scales for ends in (lower, upper))
        return (log_weights + log_interval(start, end).sum(dim=-1)).logsumexp(dim=-1)

    def _loss(self, z: Tensor, values: Tensor, uniforms: Tensor) -> Tensor:
        """Return the summed negative log-density in nats; no random number is used."""
        log_weights, means, scales = self.mixture(z)
        residuals = (values[:, None] - means) / scales
        log_densities = -residuals.square() / 2 - scales.log() - math.log(2 * math.pi) / 2
        return -(log_weights + log_densities.sum(dim=-1)).logsumexp(dim=-1).sum()

    def _draw(self, z: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        """Draw a component, then the latent. The temperature scales only the spread within the component."""
        log_weights, means, scales = self.mixture(z)
        which, noise = uniforms.tensor_split([1], dim=-1)
        component = to_class(which[:, 0], log_weights.to(widest_float(z.device)).exp())
        index = component[:, None, None].expand(-1, 1, self.dimensions)
        mean, scale = (each.gather(1, index)[:, 0] for each in (means, scales))
        return mean + temperature * scale * to_normal(noise)


def log_interval(start: Tensor, end: Tensor) -> Tensor:
    """Return the log of the standard normal probability of [start, end], accurate in both tails.

    Above the mean, the interval is mirrored: there the cumulative distribution rounds to 1, and differences are lost.
    """
    mirrored = start > 0
    start, end = torch.where(mirrored, -end, start), torch.where(mirrored, -start, end)
    below, upto = torch.special.log_ndtr(start), torch.special.log_ndtr(end)
    return upto + torch.log(-torch.expm1(below - upto))
