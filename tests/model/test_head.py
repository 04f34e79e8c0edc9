"""The dimension-wise head: what it may see, and that its cache changes nothing."""

import torch
from torch import Tensor

from tokenbridge.model import TokenBridgeTransformer


def features(count: int) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_cached_steps_give_the_teacher_forced_logits(model: TokenBridgeTransformer) -> None:
    z, seen = features(5), []

    def choose(logits: Tensor, dimension: int) -> Tensor:
        seen.append(logits)
        return (logits.argmax(-1) + dimension) % 8  # any choice will do; not the likeliest

    tokens = model.head.sample(z, choose)
    teacher_forced = model.head(z, tokens)
    torch.testing.assert_close(torch.stack(seen, dim=1), teacher_forced, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_dimension_sees_only_those_before_it(model: TokenBridgeTransformer) -> None:
    z, tokens = features(2), torch.zeros(2, 4, dtype=torch.long)
    before = model.head(z, tokens)
    for changed in range(4):
        other = tokens.clone()
        other[:, changed] = 5
        moved = (model.head(z, other) - before).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == [slot > changed for slot in range(4)]


@torch.no_grad()
def test_a_position_sees_only_its_own_features(model: TokenBridgeTransformer) -> None:
    z, tokens = features(3), torch.zeros(3, 4, dtype=torch.long)
    other = z.clone()
    other[1] += 1
    moved = (model.head(other, tokens) - model.head(z, tokens)).abs().amax(dim=(1, 2)) > 1e-6
    assert moved.tolist() == [False, True, False]
