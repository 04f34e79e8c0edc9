"""The bits head (BAR, arXiv 2602.09024): p(q | z) by filling in the masked bits of a token.

Each of the token's levels is written as a Gray code, in which neighbouring levels differ in one bit. Some bits are
masked, and the network predicts each of them from z and the visible ones. So masking has the place of noise, and the
share of masked bits that of the time: the network is the one of denoising.py.

Differs: BAR's bits are the channels of its tokenizer, without an order of levels. Masked bits of one step are drawn
independently. For levels with a normal distribution, this loses 0.1 to 0.2 bits with the Gray code, and 0.5 to 1 bit
with binary numbers.

Shapes: M positions, G slots of a token, B = 2**b levels, k = G b bits of a token, R repeats.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.model.denoising import TIME_SCALE, DenoisingHead, Predict
from tokenbridge.model.schedule import masked_counts
from tokenbridge.model.token_head import exact
from tokenbridge.model.uniforms import LEAST_UNIFORM, shifted, to_normal

ALL_MASKED = 0.1  # the share of trained tokens of which every bit is masked
RATIO_SPREAD = 0.8  # of the normal number whose sigmoid is the share of masked bits of the others
VISIBLE_WEIGHT = 0.1  # of a visible bit in the loss, where a masked one has 1


def to_signs(tokens: Tensor, bits: int) -> Tensor:
    """Return the bits [..., G b] of the Gray codes of levels [..., G], highest first: 1.0 where one is set, or -1.0."""
    code = (tokens ^ (tokens >> 1))[..., None] >> torch.arange(bits, device=tokens.device).flip(0)
    return (2 * (code & 1) - 1).flatten(-2).float()


def to_levels(signs: Tensor, bits: int) -> Tensor:
    """Return the levels [..., G] of bits [..., G b]: the inverse of ``to_signs``."""
    binary = (signs > 0).unflatten(-1, (-1, bits)).cumsum(dim=-1) % 2
    return (binary << torch.arange(bits, device=signs.device).flip(0)).sum(dim=-1)


def masked_bits(uniforms: Tensor, bits: int) -> Tensor:
    """Return how many of a token's ``bits`` bits are masked in training, at least 1, for uniforms [M].

    Differs: a tenth of the tokens has every bit masked, as each draw begins. BAR's shares hardly ever reach 1.
    """
    ratios = (RATIO_SPREAD * to_normal((uniforms - ALL_MASKED) / (1 - ALL_MASKED))).sigmoid()
    return (bits * torch.where(uniforms < ALL_MASKED, 1, ratios)).round().clamp(min=1)


class BitsHead(DenoisingHead):
    """Predicts the bits of a token's levels, a few at a time.

    Differs: the network is that of the diffusion head, so that both can be compared. BAR's has SwiGLU blocks with
    RMSNorm, and random frequencies for the share of masked bits. Bits enter as -1, 0 (masked) and 1, as in MaskBit
    (arXiv 2409.16211), where BAR has a table. A bit has one logit, where BAR has two.

    Args:
        dimensions: G.
        levels: B, a power of 2.
        steps: in which a token is drawn. With k steps, the draws have exactly the model's distribution.
        repeats: the number of masks with which each position is trained.

    Raises:
        UserError: if B is no power of 2, or there are more steps than bits.
    """

    def __init__(
        self, *, dimensions: int, levels: int, features: int, width: int, depth: int, steps: int, repeats: int = 1
    ) -> None:
        self.bits = levels.bit_length() - 1
        if levels < 2 or levels.bit_count() != 1:
            raise UserError(f"levels is {levels}: a bits head needs a power of 2")
        total = dimensions * self.bits
        if not 1 <= steps <= total:
            raise UserError(f"steps is {steps}: a bits head of {dimensions} x {self.bits} bits needs 1 to {total}")
        super().__init__(
            dimensions=total, outputs=total, features=features, width=width, depth=depth, steps=steps, repeats=repeats
        )
        self.draw_numbers = 2 * total  # for each bit, one for its value and one for its place in the order
        self.counts = sorted(before - after for before, after in pairwise([total, *masked_counts(total, steps)]))

    def log_probabilities(self, z: Tensor, tokens: Tensor, order: Tensor) -> Tensor:
        """Return the log-probability [M] of tokens [M, G] whose bits are drawn one at a time, in the ``order`` [M, k].

        With k steps, ``draw`` draws from exactly this distribution, each token in a random order.
        """
        with exact(z.device):
            predict, signs = self._predict(self.condition(z.float())), to_signs(tokens, self.bits)
            seen, found = torch.zeros_like(signs), signs.new_zeros(len(z), 1)
            for step, place in enumerate(order.split(1, dim=1)):
                logits = predict(seen, self._time(seen.new_full((1,), self.dimensions - step)))
                sign = signs.gather(1, place)
                found = found + F.logsigmoid(sign * logits.gather(1, place))
                seen = seen.scatter(1, place, sign)
        return found[:, 0]

    def _time(self, masked: Tensor) -> Tensor:
        """Return what the network sees of the numbers of masked bits."""
        return TIME_SCALE / self.dimensions * masked

    def _noisy_loss(self, predict: Predict, values: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Return k times the weighted mean of the bits' cross-entropies, in nats, summed over positions.

        The bits of the smallest noise are masked.

        Differs: each position has its own mean, so that its loss does not depend on others.
        """
        signs, count = to_signs(values, self.bits), masked_bits(times, self.dimensions)
        masked = noise.argsort(dim=-1).argsort(dim=-1) < count[:, None]
        logits = predict(signs.masked_fill(masked, 0), self._time(count))
        weights = torch.where(masked, 1, VISIBLE_WEIGHT)
        means = (weights * -F.logsigmoid(signs * logits)).sum(dim=-1) / weights.sum(dim=-1)
        return self.dimensions * means.sum()

    def _sample(self, predict: Predict, uniforms: Tensor, temperature: float) -> Tensor:
        """Draw levels [M, G], as float32; they are NaN where a logit was not finite.

        Each step draws every masked bit and keeps the most confident ones. The confidence is the log-probability of the
        drawn value, plus noise. The temperature falls from step to step. With k steps, the order is random and the
        temperature constant.

        Differs: BAR takes the logit of the drawn value as its confidence. With one logit for a bit, there is none.
        """
        alone = self.steps == self.dimensions
        seen = torch.zeros_like(uniforms[:, : self.dimensions])
        total, left = seen.new_zeros(len(seen), 1), self.dimensions
        for step, count in enumerate(self.counts):
            of_value, of_order = shifted(uniforms, step).clamp(LEAST_UNIFORM, 1 - LEAST_UNIFORM).chunk(2, dim=-1)
            heat = temperature if alone else temperature * (1 - step / self.steps)
            logits = predict(seen, self._time(seen.new_full((1,), left)))
            signs = torch.where(logits > heat * of_value.logit(), 1.0, -1.0)
            score = of_order if alone else F.logsigmoid(signs * logits) - heat * (-of_order.log()).log()
            place = score.masked_fill(seen != 0, -math.inf).argsort(dim=-1, descending=True, stable=True)[:, :count]
            seen = seen.scatter(1, place, signs.gather(1, place))
            total, left = total + logits.sum(dim=-1, keepdim=True), left - count
        return to_levels(seen, self.bits) + 0 * total
