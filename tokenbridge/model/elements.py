"""The trunk of elements: any number of any token is masked (CubiD, arXiv 2603.19232).

A token's numbers are units of their own, masked and drawn one by one in a random order of all. So a step may draw one
dimension here and another there, each from all numbers that are known, and a token may be known in part.

Differs: known numbers have a flag, because CubiD's learned scalar for "masked" looks like a value. As many numbers are
masked in each image of a batch, not each by chance. Blocks, initialization, class and heads are those of the masked
trunk, so that only the trunk differs in a comparison: a head of one slot gets the features of a position and the
embedding of a dimension, where CubiD's MLP gives the logits of all dimensions at once.

Shapes: N images, S positions, C dimensions, U = S C numbers (number s C + c is dimension c at position s), V known and
K wanted ones, P buffer positions (they hold the class), D width.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from tokenbridge.model.layers import Block, gather, layer_norm, run_block
from tokenbridge.model.transformer import AutoregressiveModel


class ElementTransformer(AutoregressiveModel):
    """An encoder and a decoder of all positions, whose numbers are known or masked one by one."""

    trunk = "elements"
    causal = False
    learned = ("encoder_position", "decoder_position", "output_position", "output_dimension")

    @property
    def units(self) -> int:
        return self.positions * self.config.dimensions

    @property
    def unit_slots(self) -> int:
        return 1

    def build_trunk(self, sizes: FrozenDict) -> None:
        width, heads, dropout = sizes.width, sizes.heads, sizes.dropout
        length = sizes.buffer_size + self.positions
        self.known_in = nn.Linear(sizes.dimensions, width)
        self.encoder_position = nn.Parameter(torch.empty(1, length, width))
        self.encoder_in_norm = layer_norm(width)
        self.encoder = nn.ModuleList(Block(width, heads, dropout) for _ in range(sizes.encoder_depth))
        self.encoder_norm = layer_norm(width)
        self.decoder_in = nn.Linear(width, width)
        self.decoder_position = nn.Parameter(torch.empty(1, length, width))
        self.decoder = nn.ModuleList(Block(width, heads, dropout) for _ in range(sizes.decoder_depth))
        self.decoder_norm = layer_norm(width)
        self.output_position = nn.Parameter(torch.empty(1, self.positions, width))
        self.output_dimension = nn.Parameter(torch.empty(1, sizes.dimensions, width))

    def encode(self, values: Tensor, labels: Tensor, read: Tensor) -> Tensor:
        """Return the encoder's output [N, P + S, D] from the numbers ``read`` [N, V] of values [N, S, C]."""
        known = values.new_zeros(len(values), self.units).scatter(1, read, 1).view_as(values)
        kind = self.token_in.weight.dtype
        x = self.token_in((values * known).to(kind)) + self.known_in(known.to(kind))
        classes = self._embed_labels(labels)[:, None].expand(-1, self.buffer_size, -1)
        x = self.encoder_in_norm(torch.cat([classes, x], dim=1) + self.encoder_position)
        for block in self.encoder:
            x = run_block(self, block, x)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, read: Tensor, wanted: Tensor) -> Tensor:
        """Return the features z [N, K, D] of the ``wanted`` numbers [N, K]: of their positions and dimensions."""
        x = self.decoder_in(encoded) + self.decoder_position
        for block in self.decoder:
            x = run_block(self, block, x)
        positions, dimensions = wanted // self.config.dimensions, wanted % self.config.dimensions
        z = self._output(gather(x[:, self.buffer_size :], positions), positions)
        return z + F.embedding(dimensions, self.output_dimension[0])
