"""Settings of an autoregressive model: its size, its training, its use."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, get_args

from pydantic import Field

from tokenbridge.base.checks import Precision
from tokenbridge.config.types import (
    Amount,
    Integer,
    Number,
    Optimizer,
    Positive,
    PositiveNumber,
    Settings,
    Share,
    refuse,
)

LevelHead = Literal["autoregressive", "parallel"]
ContinuousHead = Literal["mixture", "diffusion", "flow"]
Head = LevelHead | Literal["bits"] | ContinuousHead
HeadModulation = Literal["slot", "position"]
MaskedTrunk = Literal["masked", "elements"]
CausalTrunk = Literal["causal_random", "causal_raster"]
Trunk = MaskedTrunk | CausalTrunk
GuidanceSchedule = Literal["linear", "constant", "cosine"]
GuidanceOn = Literal["features", "output"]
RevealOrder = Literal["random", "raster", "confidence", "halton"]
LEVEL_HEADS: tuple[str, ...] = get_args(LevelHead)
CONTINUOUS_HEADS: tuple[str, ...] = get_args(ContinuousHead)
HEADS = (*LEVEL_HEADS, "bits", *CONTINUOUS_HEADS)
CAUSAL_TRUNKS: tuple[CausalTrunk, ...] = get_args(CausalTrunk)
TRUNKS: tuple[Trunk, ...] = (*get_args(MaskedTrunk), *CAUSAL_TRUNKS)
HEAD_MODULATIONS: tuple[str, ...] = get_args(HeadModulation)
GUIDANCE_SCHEDULES: tuple[GuidanceSchedule, ...] = get_args(GuidanceSchedule)
GUIDED: tuple[GuidanceOn, ...] = get_args(GuidanceOn)
REVEAL_ORDERS: tuple[RevealOrder, ...] = get_args(RevealOrder)
Decay = Annotated[Number, Field(ge=0, le=0.999999)]
FIXED_ORDERS: dict[Trunk, RevealOrder] = {"causal_raster": "raster"}  # of trunks that know one order alone
MAX_DEFAULT_STEPS = 16
NOISE_STEPS = 1000  # in which a diffusion head learns, and in so many at most it draws
LEAST_TEMPERATURE = 0.001  # except 0


class TrainConfig(Settings):
    """The recipe of one autoregressive model (paper Table 4)."""

    seed: Integer
    batch_size: Positive
    epochs: PositiveNumber
    optimizer: Optimizer  # the paper's is adamw
    learning_rate: PositiveNumber  # AdamW's
    muon_learning_rate: Amount
    weight_decay: Amount
    beta1: Decay
    beta2: Decay
    warmup_epochs: Amount
    clip_norm: PositiveNumber
    ema_decay: Decay  # 0: no averaging
    ema_warmup: bool  # decay grows as (1 + step) / (10 + step) up to ema_decay
    label_dropout: Share
    mask_ratio_mean: Amount  # of the normal before it is cut to [mask_ratio_min, 1]; a causal trunk has 1 for both
    mask_ratio_std: PositiveNumber
    mask_ratio_min: Share
    head_share: Annotated[Number, Field(gt=0, le=1)]  # of the masked positions, those that the head is trained on
    mask_group_size: Positive | None  # images of a batch that share one mask ratio; null: the whole batch does
    precision: Precision
    evaluations: Positive  # how often the validation loss is measured; the last time is after the last step
    sample_grids: bool  # also draw a picture of samples at each evaluation

    def __post_init__(self) -> None:
        warmup, epochs = self.warmup_epochs, self.epochs
        mean, least, size, group = self.mask_ratio_mean, self.mask_ratio_min, self.batch_size, self.mask_group_size
        refuse(
            {
                f"warmup_epochs is {warmup}: must be at most train.epochs ({epochs})": warmup > epochs,
                f"mask_ratio_mean is {mean}: must be from train.mask_ratio_min ({least}) to 1": not least <= mean <= 1,
                f"mask_group_size is {group}: must divide train.batch_size ({size})": size % (group or size) != 0,
            }
        )

    @property
    def mask_group(self) -> int:
        """The number of consecutive images of a batch that share one mask ratio."""
        return self.mask_group_size or self.batch_size


class ModelConfig(Settings):
    """Size of one autoregressive model, with its training recipe."""

    pretrained: str | None  # a pipeline folder to take as it is, such as an imported one; null: train one
    trunk: Trunk  # masked: the paper's; elements: of single numbers; causal: decoder-only, in random order or by rows
    width: Positive
    encoder_depth: Positive  # a causal trunk has encoder_depth + decoder_depth blocks
    decoder_depth: Positive
    heads: Positive
    head_width: Positive
    head_depth: Positive
    head_heads: Positive
    head: Head  # autoregressive: the paper's; parallel: each dimension from the features alone; others: docs/method.md
    head_components: Positive  # Gaussians of a mixture head
    head_steps: Positive  # in which a diffusion, flow or bits head draws a token
    head_repeats: Positive  # noises (or masks of bits) with which such a head learns each token at each step
    head_group: Positive  # dimensions predicted jointly; 1 is the paper's
    head_modulation: HeadModulation  # slot: another one for each dimension, the paper's; position: one for all, cheaper
    draft_depth: Positive | None  # blocks of a draft head for speculative sampling; null: no draft
    buffer_size: Positive  # class positions in front of the sequence
    dropout: Annotated[Number, Field(ge=0, le=0.9)]  # in the spatial blocks and in the head's
    level_embedding_std: PositiveNumber  # of the head's level embeddings at the start; the released code: 1
    train: TrainConfig

    def __post_init__(self) -> None:
        for width, heads, name in ((self.width, self.heads, ""), (self.head_width, self.head_heads, "head_")):
            message = f"{name}width is {width}: must be a multiple of {name}heads ({heads})"
            refuse({message: width % heads != 0})
        needless = self.draft_depth is not None and self.head != "autoregressive"
        advice = f"a {self.head} head draws a token at once and needs no draft, so set it to null"
        refuse({f"draft_depth is {self.draft_depth}: {advice}": needless})
        grouped = f"head_group is {self.head_group}: only {' and '.join(LEVEL_HEADS)} heads have groups, so set it to 1"
        refuse({grouped: self.head_group > 1 and self.head not in LEVEL_HEADS})
        noisy = f"head_steps is {self.head_steps}: must be from 2 to {NOISE_STEPS} with a diffusion head"
        refuse({noisy: self.head == "diffusion" and not 2 <= self.head_steps <= NOISE_STEPS})
        self._check_trunk()

    def _check_trunk(self) -> None:
        causal, share = self.trunk in CAUSAL_TRUNKS, self.train.head_share
        advice = f"but trunk={self.trunk} learns every position at each step: set it to 1"
        single = f"but trunk={self.trunk} draws single numbers, so set it to"
        elements = self.trunk == "elements"
        refuse(
            {
                f"width is {self.width}: must be even with trunk={self.trunk}": causal and self.width % 2 != 0,
                f"train.head_share is {share}, {advice}": causal and share != 1,
                f"head_group is {self.head_group}, {single} 1": elements and self.head_group != 1,
                f"draft_depth is {self.draft_depth}, {single} null": elements and self.draft_depth is not None,
            }
        )
        if causal:
            self.train = replace(self.train, mask_ratio_mean=1.0, mask_ratio_min=1.0)


class SamplingSettings(Settings, frozen=True):
    """Settings of how tokens are drawn.

    Attributes:
        steps: None: one for each position to draw, at most ``MAX_DEFAULT_STEPS`` if the trunk knows any order.
        guidance_scale: 1: no guidance.
        guidance_interval: guidance acts while the share of revealed positions lies in [from, to).
        guidance_refresh: every so many guided steps, the unconditional half is computed; in between, its difference to
            the conditional half is taken from the last time (LazyMAR). 1: it is always computed.
        guidance_on: what is mixed: the ``features`` of a position, as the released code does, so that the head runs
            once; or the head's ``output`` (logits, noise or velocity), so that it runs for both halves.
        temperature: of the logits; 0 takes the likeliest level. Smaller ones than ``LEAST_TEMPERATURE`` would overflow.
        top_p: draw among the likeliest levels that together have this probability; 1: all.
        order: ``random``, the paper's: each image in its own order; ``raster``: row by row from the top left;
            ``confidence``: each step draws all masked positions and keeps those of the highest mean log-probability,
            which is taken before temperature and top-p. The authors use it for clean backgrounds only, because it
            costs diversity; ``halton``: each step's positions are spread evenly over the image. None: ``raster`` if the
            trunk knows no other order, else ``random``.
        speculative: the model's draft head proposes all slots of a token at once, and the head corrects them. The
            distribution is the same, the images of a seed are not. Needs a model with a draft (``draft_depth``).
    """

    steps: Positive | None = None
    guidance_scale: Annotated[Number, Field(ge=1, le=1000)] = 2.0
    guidance_schedule: GuidanceSchedule = "linear"
    guidance_interval: Sequence[Share] = (0.0, 1.0)
    guidance_refresh: Positive = 1
    guidance_on: GuidanceOn = "features"
    temperature: Annotated[Number, Field(ge=0, le=1000)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    order: RevealOrder | None = None
    speculative: bool = False

    def __post_init__(self) -> None:
        interval = self.guidance_interval
        wrong = len(interval) != 2 or interval[0] >= interval[1]
        cold = f"temperature is {self.temperature}: must be 0 for the likeliest level, or at least {LEAST_TEMPERATURE}"
        refuse(
            {
                f"guidance_interval is {interval}: must be [from, to] with from < to": wrong,
                cold: 0 < self.temperature < LEAST_TEMPERATURE,
                "speculative is true and guidance_on is output: set guidance_on=features": self.speculative
                and self.guidance_on == "output",
            }
        )

    def steps_for(self, trunk: Trunk, positions: int) -> int:
        """Return the number of steps in which a model with this trunk draws ``positions`` positions."""
        most = positions if trunk in FIXED_ORDERS else min(positions, MAX_DEFAULT_STEPS)
        return most if self.steps is None else self.steps

    def order_for(self, trunk: Trunk) -> RevealOrder:
        """Return the order in which a model with this trunk draws positions."""
        return self.order or FIXED_ORDERS.get(trunk, "random")


def sampling_mistakes(trunk: Trunk, settings: SamplingSettings, positions: int) -> dict[str, bool]:
    """Return messages about sampling ``positions`` positions from a model with this trunk, and whether each is true."""
    fixed, order = FIXED_ORDERS.get(trunk), settings.order_for(trunk)
    steps, refresh = settings.steps_for(trunk, positions), settings.guidance_refresh
    return {
        f"order is {order}, but a model with trunk={trunk} knows one order alone: use order={fixed}": (
            fixed not in (None, order)
        ),
        f"steps is {steps}, but a model with trunk={trunk} predicts the next position alone, not {positions} positions "
        f"in fewer steps: use steps={positions}": fixed is not None and steps < positions,
        f"order is {order}, an order of positions, but a model with trunk={trunk} draws single numbers: use "
        "order=random or confidence": trunk == "elements" and order in {"raster", "halton"},
        f"guidance_refresh is {refresh}, but a model with trunk={trunk} reads each token once in both halves, so it "
        "would save nothing: use guidance_refresh=1": trunk in CAUSAL_TRUNKS and refresh > 1,
    }


class GenerateConfig(SamplingSettings, frozen=True, kw_only=True):
    """Settings of how samples are drawn by the stage ``generate``."""

    samples: Positive
    steps: Positive | None = Field()
    precision: Precision
    grid_per_class: Positive  # columns of the picture grid


class EvaluateConfig(Settings):
    """Settings of what is measured on the samples."""

    feature_size: Positive  # EfficientNet-Lite0's input size, in pixels
    kid_subset_size: Positive
    kid_subsets: Positive
    inception_weights: str | None  # torch-fidelity's Inception file, or `download`; null: no FID is reported
    dinov2_weights: str | None  # released DINOv2 ViT-S, -B or -L/14; null: no Fréchet distance on DINOv2's features
    inception_reference: str | None  # npz with mu and sigma (such as ADM's); null: the test images
    precision: Precision

    def __post_init__(self) -> None:
        alone = self.inception_reference is not None and self.inception_weights is None
        refuse({f"inception_reference is {self.inception_reference!r}: set evaluate.inception_weights too": alone})
