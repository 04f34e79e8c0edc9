"""The head's loss and gradients, computed for a part of the positions at a time.

The head has many activations: at L, one of an MLP takes 3.7 GB for 64 images. No position needs those of another. So
each part's backward follows its forward at once, and only one part's activations exist. What remains is the gradient of
the features, which the spatial transformer's backward needs, and the gradient of the head's weights.

Shapes: M positions, G slots (C dimensions without grouping), Z width of the features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenbridge.model.heads import Head

NUMBERS_ON_CPU, NUMBERS = 2**19, 2**25  # in an activation of one part: on a CPU, and on any other device
OUTPUTS = 4  # a part may have 4 logits for each number of one activation, because there are many activations


def head_loss(head: Head, z: Tensor, tokens: Tensor, uniforms: Tensor) -> Tensor:
    """Return the head's mean loss for each number of a token, of tokens [M, G] in head order, from features z [M, Z].

    Differs: the released code computes all positions at once, with the same result.

    Args:
        uniforms: [M, R] random numbers in [0, 1), as many as the head's loss needs.
    """
    rows = positions_at_once(head, z.device) if head.loss_by_parts else len(z)
    if torch.is_grad_enabled() and len(z) > rows:
        loss: Tensor = LossByParts.apply(head, tokens, uniforms, rows, z, *head.parameters())
        return loss
    return torch.stack([head.loss(*part) for part in parts(rows, z, tokens, uniforms)]).sum() / tokens.numel()


def positions_at_once(head: Head, device: torch.device) -> int:
    """Return for how many positions the head computes its loss at once."""
    largest = max(head.numbers, head.outputs // OUTPUTS)
    return max(1, (NUMBERS_ON_CPU if device.type == "cpu" else NUMBERS) // largest)


def parts(rows: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(rows) for tensor in tensors), strict=True))


class LossByParts(torch.autograd.Function):
    """The mean loss; its forward computes the gradients too."""

    @staticmethod
    def forward(
        ctx: Any, head: Head, tokens: Tensor, uniforms: Tensor, rows: int, z: Tensor, *weights: Tensor
    ) -> Tensor:
        losses, of_z = [], []
        of_weights: list[Tensor] = []
        for part, known, random in parts(rows, z.detach(), tokens, uniforms):
            part.requires_grad_()
            with torch.enable_grad():
                loss = head.loss(part, known, random) / tokens.numel()
            own, *others = torch.autograd.grad(loss, [part, *weights])
            losses.append(loss.detach())
            of_z.append(own)
            if of_weights:
                torch._foreach_add_(of_weights, others)
            else:
                of_weights = others
            del loss, others  # the next part needs the memory
        ctx.gradients = [torch.cat(of_z), *of_weights]
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # the memory is not needed twice
        torch._foreach_mul_(gradients, gradient)
        return (None, None, None, None, *gradients)
