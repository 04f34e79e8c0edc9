"""Sampling (paper Sec. 3.3; MAR): masked positions are revealed step by step, and each token dimension by dimension.

Shapes: N images, S positions, C dimensions, B levels, M positions drawn in one step. S' positions are to be drawn: all
S, or those that an edit does not keep. With the trunk of elements, "position" means a single number of a token: one
of U = S C units, of one slot each (``AutoregressiveModel.units``).

All randomness enters as ``Draws``, a function of each image's own generator. So batch size and step count do not change
the random numbers of an image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenbridge.base.device import widest_float
from tokenbridge.base.finite import check_finite
from tokenbridge.base.slices import slices
from tokenbridge.config import require
from tokenbridge.config.model import FIXED_ORDERS, SamplingSettings, sampling_mistakes
from tokenbridge.config.types import refuse
from tokenbridge.model import AutoregressiveModel
from tokenbridge.model.head import DimensionHead
from tokenbridge.model.heads import Head
from tokenbridge.model.layers import gather
from tokenbridge.model.schedule import masked_counts
from tokenbridge.model.token_head import TokenHead
from tokenbridge.model.uniforms import shifted, to_class
from tokenbridge.sampling.graphs import Function, graphed
from tokenbridge.sampling.guidance import Guidance, held_values, needed_until, refreshed
from tokenbridge.sampling.orders import reveal_order
from tokenbridge.sampling.speculative import UNIFORMS, sample_speculatively
from tokenbridge.tokenizer.latents import Quantizer

MAX_BYTES = 2**31  # of the head's cache, modulation and logits at once
CACHED_BYTES = 4  # of a number in the cache, or in the modulation
CACHED = 8  # such numbers for each feature of a slot in a block: a key, a value, and six of the modulation
LOGIT_BYTES = 48  # of a logit: in float32, and its probability, rank and sums in float64


@dataclass(frozen=True)
class Draws:
    """The randomness of N images.

    Attributes:
        order: [N, S] permutations; the tail is revealed first.
        uniforms: [N, S, R] in [0, 1). For indices R = C: one for each that will be drawn, dimensions in head order. A
            head that predicts g dimensions jointly draws C / g indices, with the first C / g uniforms of the position.
            For speculative sampling [N, S, 3 C]: those of the drafts, of the tests and of the corrections.
    """

    order: Tensor
    uniforms: Tensor

    @classmethod
    def from_generators(
        cls, generators: Sequence[torch.Generator], positions: int, numbers: int, speculative: bool = False
    ) -> "Draws":
        """Draw the order, and ``numbers`` uniforms for each position: those that the head needs for one draw."""
        order = [torch.randperm(positions, generator=g, device=g.device) for g in generators]
        uniforms = [torch.rand(positions, numbers, generator=g, device=g.device) for g in generators]
        if speculative:  # drawn last, so that the others stay as they are
            count = (UNIFORMS - 1) * numbers
            others = [torch.rand(positions, count, generator=g, device=g.device) for g in generators]
            uniforms = [torch.cat(both, dim=-1) for both in zip(uniforms, others, strict=True)]
        return cls(torch.stack(order), torch.stack(uniforms))

    def to(self, device: torch.device) -> "Draws":
        return Draws(self.order.to(device), self.uniforms.to(device))

    def of(self, images: slice) -> "Draws":
        return Draws(self.order[images], self.uniforms[images])


def guidance_at(settings: SamplingSettings, positions: int, masked_before: int, masked_after: int) -> float:
    """Return the guidance scale of one step; 1 outside the interval.

    ``linear`` grows with the share of revealed positions. ``cosine`` grows with it too, but slowly at both ends. As in
    the released code, the last step counts one position as still masked. So neither schedule reaches the full scale.
    """
    first, end = settings.guidance_interval
    if not first <= (positions - masked_before) / positions < end:
        return 1.0
    if settings.guidance_schedule == "constant":
        return settings.guidance_scale
    gain, revealed = settings.guidance_scale - 1, positions - max(1, masked_after)
    if settings.guidance_schedule == "cosine":
        return 1 + gain * (1 - math.cos(math.pi * revealed / positions)) / 2
    return 1 + gain * revealed / positions


def guidance_scales(settings: SamplingSettings, positions: int, counts: Sequence[int]) -> list[float]:
    """Return the guidance scale of each step, of which ``masked_counts`` gave the counts."""
    steps = pairwise([positions, *counts])
    return [guidance_at(settings, positions, before, after) for before, after in steps]


def choose_levels(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """Draw levels [M] from logits [M, B] by inverting the cumulative distribution at ``uniforms`` [M].

    Differs: the released code calls ``multinomial`` on the whole batch, whose draws depend on the batch.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    return to_class(uniforms, level_probabilities(logits, temperature, top_p))


def level_probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return the probabilities [..., B] with which levels are drawn, up to a factor, from logits [..., B]."""
    exact = widest_float(logits.device)
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(exact)
    probabilities = (logits.to(exact) / temperature).softmax(dim=-1)
    return _nucleus(probabilities, top_p) if top_p < 1 else probabilities


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return probabilities [..., B] with zeros outside the fewest likeliest levels that together have ``top_p``."""
    ranked, levels = probabilities.sort(dim=-1, descending=True, stable=True)
    outside = ranked.cumsum(dim=-1) - ranked >= top_p
    return probabilities.scatter(-1, levels, ranked.masked_fill(outside, 0))


@torch.no_grad()
def sample_tokens(
    model: AutoregressiveModel,
    quantizer: Quantizer,
    labels: Tensor,
    draws: Draws,
    settings: SamplingSettings,
    on_step: Callable[[int, int], None] | None = None,
    given: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Sample tokens [N, S, G], slots in natural order, for labels [N].

    A causal trunk keeps keys and values of its images until their last step. So it draws as many images as fit into the
    memory, one slice of them after the other; any other trunk takes all images through a step.

    Args:
        on_step: called with (steps done, total steps).
        given: tokens [N, S, G] of images to edit, slots in natural order; needs ``keep``.
        keep: bool [U]; true where ``given`` is kept exactly, and visible from the first step on. Steps and guidance
            count only the other positions. So every edit uses the whole schedule.

    Raises:
        UserError: if there are more steps than positions to draw, no positions to draw, no draft for speculation, no
            probabilities for top-p and confidence, or settings that the model's trunk cannot follow.
        NotFiniteError: at the end of a slice, if a logit or a drawn latent was NaN or infinite.
    """
    parts = slices(len(labels), held_values(model)) if model.causal else [slice(None)]
    rows: Function = partial(draw_rows, model, settings)
    if not settings.speculative:  # whose shapes depend on what is refused
        rows = graphed(rows, draws.uniforms.device)

    def sample(number: int, images: slice) -> Tensor:
        def advance(done: int, total: int) -> None:
            if on_step is not None:
                on_step(number * total + done, len(parts) * total)

        edited = None if given is None else given[images]
        return _sample(model, quantizer, labels[images], draws.of(images), settings, rows, advance, edited, keep)

    return torch.cat([sample(number, images) for number, images in enumerate(parts)])


def _sample(
    model: AutoregressiveModel,
    quantizer: Quantizer,
    labels: Tensor,
    draws: Draws,
    settings: SamplingSettings,
    rows: Function,
    on_step: Callable[[int, int], None],
    given: Tensor | None,
    keep: Tensor | None,
) -> Tensor:
    """Sample as ``sample_tokens``, all images in each step; ``rows`` is ``draw_rows`` of the model."""
    tokens, order, to_draw = _begin(model, quantizer, draws, settings, given, keep)
    counts = masked_counts(to_draw, settings.steps_for(model.trunk, to_draw))
    on_output = settings.guidance_on == "output"
    sums: list[Tensor] = []
    draw = partial(_draw, rows, max(1, positions_at_once(model.head) // (2 if on_output else 1)), sums)
    by_confidence, masked_before = settings.order == "confidence", to_draw
    scales = guidance_scales(settings, to_draw, counts)
    both = refreshed(scales, settings.guidance_refresh, model.causal)
    until = needed_until(both, counts, settings.guidance_refresh)
    guidance = Guidance(model, labels, settings.guidance_refresh, on_output)
    for step, masked_after in enumerate(counts):
        visible = model.visible_positions(order, masked_before)
        values = quantizer.decode(_whole(model, quantizer, tokens))
        first = 0 if by_confidence else masked_after
        needed = 0 if by_confidence else until[step]
        drawn_at, wanted = order[:, first:masked_before], order[:, needed:masked_before]
        z = guidance.features(values, visible, wanted, scales[step], both[step], first - needed)
        # both halves; `full` fills on the device, where `tensor` would copy and wait
        guided = [torch.full((), scales[step], device=z.device)] if z.shape[-1] > model.config.width else []
        if by_confidence:
            uniforms = shifted(draws.uniforms, step)  # else rejected levels are drawn again
            drawn, confidence = draw(z, gather(uniforms, drawn_at), *guided)
            rank = confidence.argsort(dim=1, stable=True)
            order = torch.cat([order[:, :masked_before].gather(1, rank), order[:, masked_before:]], dim=1)
            drawn = gather(drawn, rank[:, masked_after:])
        else:
            drawn, _ = draw(z, gather(draws.uniforms, drawn_at), *guided)
        revealed = order[:, masked_after:masked_before]
        tokens.scatter_(1, revealed[..., None].expand_as(drawn), drawn)
        masked_before = masked_after
        on_step(step + 1, len(counts))
    check_finite("the model's logits", torch.cat(sums), model, quantizer)
    return _whole(model, quantizer, tokens)


def _whole(model: AutoregressiveModel, quantizer: Quantizer, units: Tensor) -> Tensor:
    """Return tokens [N, S, G] in natural order of units [N, U, G'] in head order."""
    return quantizer.from_head_order(units.reshape(len(units), model.positions, -1))


def _begin(
    model: AutoregressiveModel,
    quantizer: Quantizer,
    draws: Draws,
    settings: SamplingSettings,
    given: Tensor | None,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor, int]:
    """Return units [N, U, G'] in head order, their order [N, U], and how many of them are to be drawn.

    Kept positions are at the order's end, and have their tokens.
    """
    shape, continuous = (*draws.order.shape, model.unit_slots), quantizer.classes is None
    kind = torch.float32 if continuous else torch.long
    tokens = torch.zeros(shape, dtype=kind, device=draws.order.device)  # head order
    grid = model.config.grid_height, model.config.grid_width
    order, to_draw = reveal_order(draws.order, settings.order_for(model.trunk), *grid), draws.order.shape[1]
    require((given is None) == (keep is None), "given and keep go together: give both or neither")
    if given is not None and keep is not None:
        whole = [len(tokens), model.positions, quantizer.slots]
        require(list(given.shape) == whole, f"given has shape {list(given.shape)}: give tokens of shape {whole}")
        tokens = torch.where(keep[:, None], quantizer.to_head_order(given).reshape(tokens.shape), tokens)
        order = order.gather(1, keep[order].int().argsort(dim=1, stable=True))  # the tail counts as revealed
        to_draw -= int(keep.sum())
        require(to_draw > 0, "keep covers every position: leave at least one position to draw")
        require(
            model.trunk not in FIXED_ORDERS or not keep[-to_draw:].any(),
            f"keep has gaps, but a model with trunk={model.trunk} draws what comes after the kept positions in order="
            f"{settings.order_for(model.trunk)}: keep only a beginning of it, or train a model with the masked trunk",
        )
    refuse(sampling_mistakes(model.trunk, settings, to_draw) | head_mistakes(model, settings))
    return tokens, order, to_draw


def head_mistakes(model: AutoregressiveModel, settings: SamplingSettings) -> dict[str, bool]:
    """Return messages about what the model's head cannot do, and whether each is true."""
    head, kind, order = model.head, model.config.head, settings.order_for(model.trunk)
    of_levels, needs_levels = isinstance(head, DimensionHead), settings.top_p < 1 or order == "confidence"
    return {
        "speculative is true, but this model has no draft: set speculative=false, or train a model with its "
        "draft_depth set": settings.speculative and model.draft is None,
        f"top_p is {settings.top_p} and order is {order}, but this model's {kind} head gives no probabilities of "
        "levels: use top_p=1 and another order": needs_levels and not of_levels,
        f"guidance_on is output, but guidance cannot mix the outputs of this model's {kind} head: use "
        "guidance_on=features": settings.guidance_on == "output" and not (of_levels or head.guided),
    }


def positions_at_once(head: Head) -> int:
    """Return for how many positions the head draws tokens at once, so that it needs about ``MAX_BYTES`` at most."""
    cached = CACHED * (len(head.blocks) + 1) * head.numbers  # one more for what is around the blocks
    return max(1, MAX_BYTES // (CACHED_BYTES * cached + LOGIT_BYTES * head.outputs))


def _draw(
    draw_rows: Function, rows: int, sums: list[Tensor], z: Tensor, uniforms: Tensor, *scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw tokens [N, K, G] in head order from z [N, K, D]; return them and their confidence [N, K].

    ``_LevelChoice`` defines the confidence, and what is added to ``sums``. With a ``scale``, z has both halves.
    """
    parts = zip(*(x.flatten(0, 1).split(rows) for x in (z, uniforms)), strict=True)
    drawn, confidence, found = zip(*(draw_rows(*part, *scale) for part in parts), strict=True)
    sums += found
    return torch.cat(drawn).view(*z.shape[:2], -1), torch.cat(confidence).view(z.shape[:2])


def draw_rows(
    model: AutoregressiveModel, settings: SamplingSettings, z: Tensor, uniforms: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw tokens [M, G] from z [M, D]; return them, their confidence [M], and sums of the logits or latents.

    With the ``scale`` of guidance on the output, z has the features of the class and of no class: [M, 2 D].
    """
    if isinstance(model.head, TokenHead):
        drawn = model.head.draw(z, uniforms, settings.temperature, scale)
        tokens = drawn if model.config.levels is None else drawn.nan_to_num().long()
        return tokens, drawn.new_zeros(len(z)), drawn.sum()[None]
    choice = _LevelChoice(uniforms, settings, scale)
    return choice.draw(model, model.head, z), choice.confidence, torch.stack(choice.sums)


class _LevelChoice:
    """The function by which the head chooses the joint class of each slot.

    Args:
        uniforms: [M, C], or [M, 3 C] for speculative sampling.
        scale: of guidance on the logits.

    Attributes:
        confidence: [M], the sum over slots of the log-probability of the chosen class, before temperature and top-p.
            The sum ranks positions as the mean does. It is 0 unless ``settings.order`` is ``confidence``.
        sums: the sum of the logits of each slot, or of each speculative pass. It is finite if every logit is, and is
            read only at the end, so that a GPU is never waited for.
    """

    def __init__(self, uniforms: Tensor, settings: SamplingSettings, scale: Tensor | None) -> None:
        self.uniforms, self.settings, self.scale = uniforms, settings, scale
        self.sums: list[Tensor] = []
        self.confidence = torch.zeros(len(uniforms), device=uniforms.device)

    def draw(self, model: AutoregressiveModel, head: DimensionHead, z: Tensor) -> Tensor:
        """Draw tokens [M, C] in head order from features z [M, Z], with a scale from those of both halves [M, 2 Z]."""
        if self.scale is not None:
            return head.sample(torch.cat(z.chunk(2, dim=-1)), self._guided)[: len(z)]
        if not self.settings.speculative:
            return head.sample(z, self)
        assert model.draft is not None, "sample_tokens checks it"
        uniforms = self.uniforms.view(len(z), UNIFORMS, head.draw_numbers)[..., : head.slots]
        tokens = sample_speculatively(head, model.draft, z, uniforms, self._probabilities)
        if self.settings.order == "confidence":
            scores = head(z, tokens).float().log_softmax(dim=-1)
            self.confidence += scores.gather(-1, head.join(tokens)[..., None]).sum(dim=(1, 2))
        return tokens

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        self.sums.append(logits.sum())
        return level_probabilities(logits, self.settings.temperature, self.settings.top_p)

    def _guided(self, logits: Tensor, slot: int) -> Tensor:
        """Choose from the mixed logits of both halves [2 M, J]. Both continue with the same choice."""
        assert self.scale is not None
        of_class, of_none = logits.float().chunk(2)
        return self(torch.lerp(of_none, of_class, self.scale), slot).repeat(2)

    def __call__(self, logits: Tensor, slot: int) -> Tensor:
        logits = logits.float()
        self.sums.append(logits.sum())
        chosen = choose_levels(logits, self.uniforms[:, slot], self.settings.temperature, self.settings.top_p)
        if self.settings.order == "confidence":
            self.confidence += logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
        return chosen
