"""The spatial transformer with its head: the whole trainable model, with the masked trunk of MAR.

Shapes: N images, S positions, C dimensions, G slots of a token, B levels, K masked positions, V = S - K visible
positions, P buffer positions (they hold the class), D width. With the trunk of elements, single numbers are masked and
drawn: U = S C units of one slot take the place of the S positions of G slots, in everything but ``values``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from torch import Tensor, nn

from tokenbridge.base.errors import UserError
from tokenbridge.config.model import Trunk
from tokenbridge.model.head import DimensionHead
from tokenbridge.model.head_loss import head_loss
from tokenbridge.model.heads import Head, make_draft, make_head
from tokenbridge.model.layers import INIT_STD, Block, gather, layer_norm, run_block

# gives features z [N, K, D] from values [N, S, C], labels [N], visible [N, V] and wanted positions [N, K]
Reader = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class AutoregressiveModel(ModelMixin, ConfigMixin, ABC):
    """The model that predicts the tokens at masked positions from the class and the tokens at visible positions.

    A subclass is a trunk: it computes features z of positions. The head predicts the token of each from its features.

    The label ``num_classes`` means "no class": the unconditional half of guidance. ``head`` is one of ``config.HEADS``.
    A token has ``slots`` numbers (None: one for each dimension) of ``levels`` values each (None: real numbers).
    ``head_group``, ``head_modulation`` and ``released_slot0`` are the ``group``, ``modulation`` and ``released_slot0``
    of ``DimensionHead``. ``head_components``, ``head_steps`` and ``head_repeats`` are the ``components``, ``steps`` and
    ``repeats`` of the other heads. With ``draft_depth`` the model has a second, parallel head of that
    many blocks, the draft of speculative sampling. The draft learns from the features and gives them no gradient, so
    the rest of the model does not depend on it.

    Attributes:
        trunk: the setting that names the class.
        causal: whether each position sees those before it alone, so that sampling can keep keys and values.
        learned: names of the trunk's learned vectors, in the order in which they are initialized. The names of those
            that belong to positions end with ``_position``.
        encoder, decoder: the trunk's blocks.
        decoder_in: the decoder's first layer.
    """

    trunk: ClassVar[Trunk]
    causal: ClassVar[bool]
    learned: ClassVar[tuple[str, ...]]
    encoder: nn.ModuleList
    decoder: nn.ModuleList
    decoder_in: nn.Module
    decoder_norm: nn.LayerNorm
    output_position: nn.Parameter  # [1, S, D]

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("Block", "HeadBlock")  # diffusers' compile_repeated_blocks compiles these

    @register_to_config
    def __init__(  # noqa: PLR0913  the arguments are the saved config, which is flat
        self,
        *,
        grid_height: int,
        grid_width: int,
        dimensions: int,
        levels: int | None,
        num_classes: int,
        width: int,
        encoder_depth: int,
        decoder_depth: int,
        heads: int,
        head_width: int,
        head_depth: int,
        head_heads: int,
        buffer_size: int,
        slots: int | None = None,
        head: str = "autoregressive",
        head_group: int = 1,
        head_modulation: str = "slot",
        head_components: int = 16,
        head_steps: int = 25,
        head_repeats: int = 4,
        draft_depth: int | None = None,
        dropout: float = 0.0,
        level_embedding_std: float = INIT_STD,
        released_slot0: bool = False,
    ) -> None:
        super().__init__()
        if released_slot0 and draft_depth is not None:  # sampling slot by slot, it has another distribution
            raise UserError(
                f"draft_depth is {draft_depth}: a model with released_slot0 can have no draft, set it to null"
            )
        self.gradient_checkpointing = False
        self.positions = grid_height * grid_width
        self.buffer_size, self.num_classes = buffer_size, num_classes
        # ---- embeddings of class and tokens
        self.class_embedding = nn.Embedding(num_classes, width)
        self.no_class = nn.Parameter(torch.empty(1, width))
        self.token_in = nn.Linear(dimensions, width)
        self.build_trunk(self.config)
        # ---- head
        self.head = make_head(self.config, self.unit_slots)
        self.initialize(level_embedding_std)
        # ---- draft: last, and without dropout, so that it changes no random number of the rest
        self.draft: DimensionHead | None = None
        if draft_depth is not None:
            self.draft = make_draft(self.config, self.unit_slots)
            initialize_modules(self.draft, level_embedding_std)
            self.draft.initialize()

    @property
    def units(self) -> int:
        """What is masked and drawn one by one: the positions."""
        return self.positions

    @property
    def unit_slots(self) -> int:
        """The numbers of a unit, which the head predicts: those of a token."""
        slots: int = self.config.slots or self.config.dimensions
        return slots

    @property
    def heads(self) -> list[Head]:
        """The head, and the draft if there is one."""
        return [self.head] if self.draft is None else [self.head, self.draft]

    # diffusers' own __getattr__ looks in the config first, and there ``head`` is a setting, not the module
    __getattr__ = nn.Module.__getattr__

    def initialize(self, level_embedding_std: float) -> None:
        """Initialize as in the released code: Xavier linears with zero bias, N(0, 0.02) embeddings, zero adaLN.

        The released code leaves the head's level embeddings at torch's N(0, 1); the large models' settings do so too.
        """
        initialize_modules(self, level_embedding_std)
        for name in ("no_class", *self.learned):
            nn.init.normal_(getattr(self, name), std=INIT_STD)
        self.head.initialize()

    def forward(
        self,
        values: Tensor,
        tokens: Tensor,
        labels: Tensor,
        order: Tensor,
        num_masked: int,
        num_predicted: int | None = None,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """Return the head's mean loss over ``num_predicted`` of the masked positions, for each number of a token.

        Of levels it is the cross-entropy, in nats. The backward pass also computes the gradient of the draft's own
        cross-entropy, which is not in the value.

        Args:
            values: dequantized latents [N, S, C], dimensions in natural order.
            tokens: [N, S, G], slots in head order: indices, or latents [N, S, C].
            labels: [N]; ``num_classes`` where the class was dropped.
            order: a permutation of the units for each image, [N, U], whose tail is known first.
            num_masked: the first so many units of ``order`` are masked.
            num_predicted: of these, the first so many count; None: all.
            uniforms: [N, U, R] in [0, 1), the random numbers of the head's loss; None: it needs none.
        """
        count = num_masked if num_predicted is None else num_predicted
        read, predicted = self.training_positions(order, num_masked, count)
        z = self.features(values, labels, read, predicted).flatten(0, 1)
        known = gather(tokens.reshape(len(tokens), self.units, -1), predicted).flatten(0, 1)
        random = z.new_empty(len(z), 0) if uniforms is None else gather(uniforms, predicted).flatten(0, 1)
        loss = head_loss(self.head, z, known, random)
        if self.draft is None or not torch.is_grad_enabled():
            return loss
        of_draft = head_loss(self.draft, z.detach(), known, random)
        return loss + (of_draft - of_draft.detach())

    def features(self, values: Tensor, labels: Tensor, read: Tensor, wanted: Tensor) -> Tensor:
        """Return the features z [N, K, D] of a training step, whose positions ``training_positions`` gives."""
        return self.decode(self.encode(values, labels, read), read, wanted)

    @abstractmethod
    def build_trunk(self, sizes: FrozenDict) -> None:
        """Make the modules of the trunk, of a model's config."""

    def training_positions(self, order: Tensor, num_masked: int, num_predicted: int) -> tuple[Tensor, Tensor]:
        """Return the positions that a training step reads, and those that it predicts [N, K], of ``order`` [N, S]."""
        return self.visible_positions(order, num_masked), split_order(order, num_predicted)[0]

    def visible_positions(self, order: Tensor, num_masked: int) -> Tensor:
        """Return the positions [N, V] that are known when the first ``num_masked`` of ``order`` [N, S] are not."""
        return split_order(order, num_masked)[1]

    def reader(self) -> Reader:
        """Return the function that gives the features of the steps of one sampling."""
        return self.features

    @abstractmethod
    def encode(self, values: Tensor, labels: Tensor, read: Tensor) -> Tensor:
        """Return what the decoder gets [N, L, D] from values [N, S, C] at the positions ``read``."""

    @abstractmethod
    def decode(self, encoded: Tensor, read: Tensor, wanted: Tensor) -> Tensor:
        """Return the features z [N, K, D] of the ``wanted`` positions [N, K]."""

    def _output(self, x: Tensor, wanted: Tensor) -> Tensor:
        """Return z from the blocks' output x [N, K, D] at the ``wanted`` positions [N, K]."""
        return self.decoder_norm(x) + gather(self.output_position.expand(len(x), -1, -1), wanted)

    def _embed_labels(self, labels: Tensor) -> Tensor:
        dropped = labels == self.num_classes
        embedded = self.class_embedding(labels.clamp(max=self.num_classes - 1))
        return torch.where(dropped[:, None], self.no_class, embedded)


class TokenBridgeTransformer(AutoregressiveModel):
    """The masked trunk (MAR): an encoder of the visible positions, and a decoder of all of them.

    Differs: the decoder has the encoder's width, as in every released size.
    """

    trunk = "masked"
    causal = False
    learned = ("mask_token", "encoder_position", "decoder_position", "output_position")

    def build_trunk(self, sizes: FrozenDict) -> None:
        width, heads, dropout = sizes.width, sizes.heads, sizes.dropout
        length = sizes.buffer_size + self.positions
        # ---- encoder over buffer and visible positions
        self.encoder_position = nn.Parameter(torch.empty(1, length, width))
        self.encoder_in_norm = layer_norm(width)
        self.encoder = nn.ModuleList(Block(width, heads, dropout) for _ in range(sizes.encoder_depth))
        self.encoder_norm = layer_norm(width)
        # ---- decoder over buffer and all positions
        self.decoder_in = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_position = nn.Parameter(torch.empty(1, length, width))
        self.decoder = nn.ModuleList(Block(width, heads, dropout) for _ in range(sizes.decoder_depth))
        self.decoder_norm = layer_norm(width)
        self.output_position = nn.Parameter(torch.empty(1, self.positions, width))

    def features(self, values: Tensor, labels: Tensor, visible: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Return the features z [N, K, D] of the ``wanted`` positions [N, K], from values [N, S, C] at visible ones.

        Args:
            visible: [N, V].
            wanted: None: every position.
        """
        return self.decode(self.encode(values, labels, visible), visible, wanted)

    def encode(self, values: Tensor, labels: Tensor, visible: Tensor) -> Tensor:
        """Return the encoder's output [N, P + V, D]."""
        x = gather(self.token_in(values.to(self.token_in.weight.dtype)), visible)
        x = x + gather(self.encoder_position[:, self.buffer_size :].expand(len(x), -1, -1), visible)
        classes = self._embed_labels(labels)[:, None] + self.encoder_position[:, : self.buffer_size]
        x = self.encoder_in_norm(torch.cat([classes, x], dim=1))
        for block in self.encoder:
            x = run_block(self, block, x)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, visible: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Return the decoder's output z [N, K, D] at the ``wanted`` positions, with the output position added.

        Differs: the last block computes only these positions. The released code computes all, and uses only these.
        """
        x = self.decoder_in(encoded)
        buffer, known = x[:, : self.buffer_size], x[:, self.buffer_size :]
        full = self.mask_token.to(x.dtype).expand(len(x), self.positions, -1)
        full = full.scatter(1, visible[..., None].expand_as(known), known)
        x = torch.cat([buffer, full], dim=1) + self.decoder_position
        *blocks, last = self.decoder
        for block in blocks:
            x = run_block(self, block, x)
        if wanted is None:
            wanted = torch.arange(self.positions, device=x.device).expand(len(x), -1)
        x = run_block(self, last, x, self.buffer_size + wanted)
        return self._output(x, wanted)


def split_order(order: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Return masked [N, K] and visible [N, V] positions, each ascending.

    The first ``num_masked`` positions of the order are masked.
    """
    return order[:, :num_masked].sort(dim=1).values, order[:, num_masked:].sort(dim=1).values


def initialize_modules(part: nn.Module, level_embedding_std: float) -> None:
    """Initialize the linears and embeddings of ``part``."""
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=level_embedding_std if name.endswith("level_embedding") else INIT_STD)
