"""Speculative sampling over the dimensions of a token: draft all slots at once, verify them at once, correct a few.

The draft's q_i(. | z) does not depend on other slots. The head gives all p_i(. | z, x_<i) of a known token x in one
teacher-forced pass. A drafted level is accepted with probability min(1, p/q). At the first refusal the level is drawn
from the residual (p - q)_+, and the slots behind it are verified again with another pass (Leviathan et al. 2023). The
result has exactly the head's distribution, however bad the draft is.

Differs: drafts behind a refusal are kept. Speculative decoding of text draws them again, because its draft sees the
tokens before. Here q does not, and no test has looked at them yet, so they are still fresh draws of q.

A token takes one pass and one more for each refusal before the last slot: 1 + sum_{i<G} E[TV(p_i, q_i)] on average.

Shapes: M positions, C dimensions in head order, g dimensions of a group, G = C / g slots, J joint classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenbridge.model.head import DimensionHead
from tokenbridge.model.uniforms import to_class

UNIFORMS = 3  # for each slot: of the draft, of the test, of the correction


def sample_speculatively(
    head: DimensionHead,
    draft: DimensionHead,
    z: Tensor,
    uniforms: Tensor,
    probabilities: Callable[[Tensor], Tensor],
) -> Tensor:
    """Sample tokens [M, C], in head order, with the distribution of ``head.sample``.

    The host waits for the number of refusals after each pass, because the next pass computes only their positions.

    Args:
        draft: a parallel head with the slots and classes of ``head``.
        z: features [M, Z].
        uniforms: [M, 3, G] in [0, 1): of the draft, of the test and of the correction of each slot.
        probabilities: turns logits [..., J] into the probabilities to draw from, up to a factor.
    """
    of_draft, of_test, of_correction = uniforms.unbind(1)

    def law(logits: Tensor) -> Tensor:
        found = probabilities(logits)
        return found / found.sum(dim=-1, keepdim=True)

    q = law(draft(z, z.new_empty(0)))  # a parallel head ignores the tokens
    drawn = to_class(of_draft, q)
    slots = torch.arange(head.slots, device=z.device)
    active, start = torch.arange(len(z), device=z.device), torch.zeros(len(z), dtype=torch.long, device=z.device)
    while len(active):
        known = drawn[active]
        p = law(head(z[active], head.split(known)))
        at_p, at_q = (each.gather(-1, known[..., None])[..., 0] for each in (p, q[active]))
        refused = (of_test[active] * at_q >= at_p) & (slots >= start[:, None])
        rows = refused.any(dim=1).nonzero()[:, 0]
        first = refused[rows].int().argmax(dim=1)
        active = active[rows]
        residual = (p[rows, first] - q[active, first]).clamp(min=0)
        corrected = to_class(of_correction[active, first], residual)
        # without a residual p and q are equal but for rounding, and the draft is right
        drawn[active, first] = torch.where(residual.sum(dim=-1) > 0, corrected, drawn[active, first])
        unverified = first + 1 < head.slots
        active, start = active[unverified], first[unverified] + 1
    return head.split(drawn)
