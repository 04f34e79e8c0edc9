"""Heads that draw a whole token at once from the features z of its position, and need uniform numbers to do so.

They take the place of the dimension-wise head (head.py), so that tokens and heads can be compared with the same spatial
transformer. The tokens are the real-valued, normalised latents x of a position; those of the bits head are levels.

All randomness enters as uniform random numbers. So a position's loss and draw depend only on its own features and
numbers, and never on the rest of the batch.

Shapes: M positions (of any number of images, flattened), C dimensions (slots of quantized tokens), Z width of the
features z.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenbridge.model.layers import NORM_EPS


def exact(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast; meta tensors have none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Linear(nn.Linear):
    """A linear layer that computes in float32, also with weights that were cast to bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float(), self.bias.float())


class LayerNorm(nn.LayerNorm):
    """A layer norm with learned scale and shift that computes in float32, also with weights cast to bfloat16."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class TokenHead(nn.Module, ABC):
    """A head that models p(x | z) of one position's token: of latents, a density.

    Everything is computed in float32, because the released diffusion head can give NaN in half precision.

    Attributes:
        blocks: the repeated blocks, which FSDP wraps and plans count.
        loss_numbers: the uniform random numbers that the loss of one position needs.
        draw_numbers: the uniform random numbers that one draw of a position needs.
        numbers: the numbers in the largest activation of one position in training.
        outputs: the numbers that the last layer gives for one position.
        guided: whether guidance can mix the head's outputs.
    """

    blocks: nn.ModuleList
    loss_numbers: int
    draw_numbers: int
    numbers: int
    outputs: int
    guided = False

    def __init__(self) -> None:
        super().__init__()
        self.loss_by_parts = True  # see head_loss.py

    def loss(self, z: Tensor, values: Tensor, uniforms: Tensor) -> Tensor:
        """Return the loss, summed over positions and dimensions: divided by M C, it is the mean per dimension.

        Args:
            z: features [M, Z].
            values: the true tokens x [M, C]: latents, float32, or levels.
            uniforms: [M, loss_numbers] in [0, 1).
        """
        with exact(z.device):
            return self._loss(z.float(), values, uniforms)

    def draw(self, z: Tensor, uniforms: Tensor, temperature: float, scale: Tensor | None = None) -> Tensor:
        """Draw tokens [M, C], float32, which are not finite if what they are drawn from is not.

        Args:
            z: features [M, Z]; with a ``scale``, those of the class and of no class [M, 2 Z].
            uniforms: [M, draw_numbers] in [0, 1).
            temperature: the factor of the noise; below 1 the draws spread less.
            scale: of guidance on the output; only heads with ``guided`` have one that can be mixed.
        """
        with exact(z.device):
            if scale is None:
                return self._draw(z.float(), uniforms, temperature)
            of_class, of_none = z.float().chunk(2, dim=-1)
            return self._draw_guided(of_class, of_none, uniforms, temperature, scale)

    @abstractmethod
    def initialize(self) -> None:
        """Initialize all weights."""

    @abstractmethod
    def _loss(self, z: Tensor, values: Tensor, uniforms: Tensor) -> Tensor:
        """Return what ``loss`` does, from float32 features."""

    @abstractmethod
    def _draw(self, z: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        """Return what ``draw`` does, from float32 features."""

    def _draw_guided(
        self, z: Tensor, unconditional: Tensor, uniforms: Tensor, temperature: float, scale: Tensor
    ) -> Tensor:
        """Return what ``draw`` does with a ``scale``, from the features of the class and of no class, each [M, Z]."""
        raise NotImplementedError


def initialize_layers(head: TokenHead) -> None:
    """Initialize the layers of ``head``: Xavier uniform linears with zero biases, and norms that change nothing."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
