"""The causal trunk: a decoder-only transformer that reads positions in any order (sigma-GPT, arXiv 2404.09562).

It reads P places of the class, then the positions in an order sigma. At each place it predicts the token of the next
position of sigma. So each place is told both its own position and the next one. No place sees later ones: training
predicts every position in one pass, and sampling keeps keys and values instead of computing them again.

Differs: blocks, initialization, dequantized inputs and the class are those of the masked trunk, so that only the trunk
differs in a comparison. The class has P places, where sigma-GPT's start has one. z gets the next position once more at
the output, as in the masked trunk and in SphereAR (arXiv 2509.24335).

Shapes: N images, S positions, C dimensions, P places of the class, V known positions, K wanted positions, D width.
Places are numbered 0 to P - 1 (the class), then P + position.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from tokenbridge.config.model import Trunk
from tokenbridge.model.layers import Block, Cache, gather, layer_norm, run_block
from tokenbridge.model.transformer import AutoregressiveModel, Reader


class CausalTransformer(AutoregressiveModel):
    """The causal trunk, trained in each image's own random order; it has encoder_depth + decoder_depth blocks."""

    trunk: ClassVar[Trunk] = "causal_random"
    causal = True
    learned = ("input_position", "output_position")

    def build_trunk(self, sizes: FrozenDict) -> None:
        width, depth = sizes.width, sizes.encoder_depth + sizes.decoder_depth
        self.input_position = nn.Parameter(torch.empty(1, self.buffer_size + self.positions, width // 2))
        self.encoder = nn.ModuleList()  # every block is one of the decoder
        self.decoder_in = layer_norm(width)
        self.decoder = nn.ModuleList(Block(width, sizes.heads, sizes.dropout, causal=True) for _ in range(depth))
        self.decoder_norm = layer_norm(width)
        self.output_position = nn.Parameter(torch.empty(1, self.positions, width))

    def training_positions(self, order: Tensor, num_masked: int, num_predicted: int) -> tuple[Tensor, Tensor]:
        """Return all positions in the order in which they are read, and the predicted ones, which are read last.

        Each is predicted from the true values of those before it. With all masked, every position is predicted.
        """
        read = self.visible_positions(self.reading_order(order), 0)
        return read, read[:, self.positions - num_predicted :]

    def reading_order(self, order: Tensor) -> Tensor:
        """Return the order [N, S] that is trained, whose tail is read first, for random permutations [N, S]."""
        return order

    def visible_positions(self, order: Tensor, num_masked: int) -> Tensor:
        return order[:, num_masked:].flip(1)

    def reader(self) -> Reader:
        return CachedReader(self)

    def encode(self, values: Tensor, labels: Tensor, read: Tensor) -> Tensor:
        """Return the inputs [N, P + S - 1, D] of all places but the last, for all positions ``read`` [N, S]."""
        places = self.places(read)
        return self.embed(values, labels, places[:, :-1], places[:, 1:])

    def decode(self, encoded: Tensor, read: Tensor, wanted: Tensor) -> Tensor:
        """Return the features z [N, K, D] of the ``wanted`` positions, the last K of ``read`` [N, S]."""
        x = self.decoder_in(encoded)
        for block in self.decoder:
            x = run_block(self, block, x)
        return self._output(x[:, -wanted.shape[1] :], wanted)

    def places(self, read: Tensor) -> Tensor:
        """Return the places [N, P + V] of the class and of the positions ``read`` [N, V]."""
        of_class = torch.arange(self.buffer_size, device=read.device).expand(len(read), -1)
        return torch.cat([of_class, self.buffer_size + read], dim=1)

    def embed(self, values: Tensor, labels: Tensor, own: Tensor, following: Tensor) -> Tensor:
        """Return the inputs [N, L, D] of the places ``own`` [N, L] that are followed by the places ``following``."""
        known = gather(values, (own - self.buffer_size).clamp(min=0))
        tokens = self.token_in(known.to(self.token_in.weight.dtype))
        content = torch.where((own < self.buffer_size)[..., None], self._embed_labels(labels)[:, None], tokens)
        return content + torch.cat([F.embedding(each, self.input_position[0]) for each in (own, following)], dim=-1)


class RasterTransformer(CausalTransformer):
    """The causal trunk, trained row by row from the top left. It knows no other order."""

    trunk = "causal_raster"

    def reading_order(self, order: Tensor) -> Tensor:
        return torch.arange(self.positions - 1, -1, -1, device=order.device).expand_as(order)


class CachedReader:
    """Features of the wanted positions, for known positions that become more from call to call, in a fixed order.

    The keys and values of what was read before are kept. A call reads the new known positions in one causal pass. The
    last known one is read once for each wanted position, as followed by it. These queries see what is known and
    themselves, but not each other (sigma-GPT's burst): each gives p(token | known tokens). They are forgotten again,
    because only the position that is revealed next follows the last one. If one position is wanted, it is that one.
    """

    def __init__(self, model: CausalTransformer) -> None:
        self.model = model
        self.caches = [Cache(model.buffer_size + model.positions - 1) for _ in model.decoder]

    def __call__(self, values: Tensor, labels: Tensor, read: Tensor, wanted: Tensor) -> Tensor:
        """Return z [N, K, D] of ``wanted`` [N, K], from values [N, S, C] at ``read`` [N, V], which is in order."""
        model, done, queries = self.model, self.caches[0].filled, wanted.shape[1]
        places = model.places(read)
        own = torch.cat([places[:, done:], places[:, -1:].expand(-1, queries - 1)], dim=1)
        following = torch.cat([places[:, done + 1 :], model.buffer_size + wanted], dim=1)
        x = model.decoder_in(model.embed(values, labels, own, following))
        mask = burst_mask(done, own.shape[1], queries, x.device)
        for block, cache in zip(model.decoder, self.caches, strict=True):
            assert isinstance(block, Block)
            x = block.extend(x, cache, mask)
            cache.filled = places.shape[1] - (queries > 1)
        return model._output(x[:, -queries:], wanted)


def burst_mask(cached: int, rows: int, queries: int, device: torch.device) -> Tensor:
    """Return what each of the ``rows`` sees, bool [rows, cached + rows]; the last of them are the ``queries``.

    Each sees the cached places and itself, and all but the other queries see the rows before.
    """
    mask = torch.ones(rows, cached + rows, dtype=torch.bool, device=device).tril(cached)
    mask[-queries:, -queries:] = torch.eye(queries, dtype=torch.bool, device=device)
    return mask
