"""Settings of an autoregressive model: its size, its training, its use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokenbridge.base.checks import (
    OPTIMIZERS,
    PRECISIONS,
    require,
    require_between,
    require_choice,
    require_positive,
)

GUIDANCE_SCHEDULES = ("linear", "constant", "cosine")
REVEAL_ORDERS = ("random", "raster", "confidence")
HEADS = ("autoregressive", "parallel")


@dataclass
class TrainConfig:
    """The recipe of one autoregressive model (paper Table 4)."""

    seed: int
    batch_size: int
    epochs: float
    optimizer: str  # adamw (the paper's) | muon: Muon for the blocks' matrices, AdamW for the rest
    learning_rate: float  # AdamW's
    muon_learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    warmup_epochs: float
    clip_norm: float
    ema_decay: float  # 0: no averaging
    ema_warmup: bool  # decay grows as (1 + step) / (10 + step) up to ema_decay
    label_dropout: float
    mask_ratio_mean: float
    mask_ratio_std: float
    mask_ratio_min: float
    precision: str
    evaluations: int  # how often the validation loss is measured; the last time is after the last step
    sample_grids: bool  # also draw a picture of samples at each evaluation

    def __post_init__(self) -> None:
        require_choice("train.precision", self.precision, PRECISIONS)
        require_choice("train.optimizer", self.optimizer, OPTIMIZERS)
        require_positive(
            "train",
            batch_size=self.batch_size,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            clip_norm=self.clip_norm,
            mask_ratio_std=self.mask_ratio_std,
            evaluations=self.evaluations,
        )
        require_between("train", 0.0, 1.0, label_dropout=self.label_dropout, mask_ratio_min=self.mask_ratio_min)
        require_between("train", 0.0, 0.999999, beta1=self.beta1, beta2=self.beta2, ema_decay=self.ema_decay)
        require(
            self.warmup_epochs <= self.epochs,
            f"train.warmup_epochs ({self.warmup_epochs}) exceeds train.epochs ({self.epochs})",
        )


@dataclass
class ModelConfig:
    """Size of one autoregressive model, with its training recipe."""

    pretrained: str | None  # a pipeline folder to take as it is, such as an imported one; null: train one
    width: int
    encoder_depth: int
    decoder_depth: int
    heads: int
    head_width: int
    head_depth: int
    head_heads: int
    head: str  # autoregressive (the paper's) | parallel: every dimension from the features alone
    head_group: int  # dimensions predicted jointly; 1 is the paper's
    buffer_size: int  # class positions in front of the sequence
    dropout: float
    train: TrainConfig

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        require_positive("model", **sizes)
        require_choice("model.head", self.head, HEADS)
        require_between("model", 0.0, 0.9, dropout=self.dropout)
        for width, heads, name in ((self.width, self.heads, ""), (self.head_width, self.head_heads, "head_")):
            require(
                width % heads == 0, f"model.{name}width ({width}) must be a multiple of model.{name}heads ({heads})"
            )


def check_sampling(
    prefix: str,
    *,
    guidance_scale: float,
    guidance_schedule: str,
    guidance_interval: Sequence[float],
    temperature: float,
    top_p: float,
    order: str,
) -> None:
    """Refuse sampling settings that cannot work; messages put ``prefix`` in front of the settings' names."""
    require(1 <= guidance_scale < math.inf, f"{prefix}guidance_scale is {guidance_scale}: 1 (no guidance) is the least")
    require_choice(f"{prefix}guidance_schedule", guidance_schedule, GUIDANCE_SCHEDULES)
    require(
        len(guidance_interval) == 2 and 0 <= guidance_interval[0] < guidance_interval[1] <= 1,
        f"{prefix}guidance_interval is {guidance_interval}: give [from, to] with 0 <= from < to <= 1",
    )
    require(0 <= temperature < math.inf, f"{prefix}temperature is {temperature}: it must be 0 or greater")
    require(0 < top_p <= 1, f"{prefix}top_p is {top_p}: it must lie in (0, 1]")
    require_choice(f"{prefix}order", order, REVEAL_ORDERS)


@dataclass
class GenerateConfig:
    """Settings of how samples are drawn."""

    samples: int
    steps: int
    guidance_scale: float
    guidance_schedule: str  # linear | constant | cosine
    guidance_interval: list[float]  # [from, to): guidance acts while the share of revealed positions lies in it
    temperature: float
    top_p: float  # draw among the likeliest levels that together have this probability; 1: all
    order: str  # random | raster | confidence
    precision: str
    grid_per_class: int  # columns of the picture grid

    def __post_init__(self) -> None:
        require_choice("generate.precision", self.precision, PRECISIONS)
        require_positive("generate", samples=self.samples, steps=self.steps, grid_per_class=self.grid_per_class)
        check_sampling(
            "generate.",
            guidance_scale=self.guidance_scale,
            guidance_schedule=self.guidance_schedule,
            guidance_interval=self.guidance_interval,
            temperature=self.temperature,
            top_p=self.top_p,
            order=self.order,
        )


@dataclass
class EvaluateConfig:
    """Settings of what is measured on the samples."""

    feature_size: int  # EfficientNet-Lite0's input size, in pixels
    kid_subset_size: int
    kid_subsets: int
    inception_weights: str | None  # torch-fidelity's Inception file, or `download`; null: no FID is reported
    inception_reference: str | None  # npz with mu and sigma (such as ADM's); null: the test images
    precision: str

    def __post_init__(self) -> None:
        require_choice("evaluate.precision", self.precision, PRECISIONS)
        require_positive(
            "evaluate", feature=self.feature_size, kid_subset=self.kid_subset_size, kid_subsets=self.kid_subsets
        )
        require(
            self.inception_reference is None or self.inception_weights is not None,
            "evaluate.inception_reference needs evaluate.inception_weights",
        )
