"""The typed schema of conf/ and params.yaml, with the ranges that can work.

``tokenbridge.params`` passes every composition through it, so that an unknown key or a bad value stops a run
before any work starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenbridge.errors import UserError

PRECISIONS = ("bf16", "fp32")
OPTIMIZERS = ("adamw", "muon")
GUIDANCE_SCHEDULES = ("linear", "constant")
NORM_GROUPS = 8  # of the trained VAE and its discriminator


class ConfigError(UserError):
    """A setting that cannot work; the message names it and says what to change."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    require(value in choices, f"{name} is {value!r}: choose one of {', '.join(choices)}")


def require_positive(group: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{group}.{name} is {value}: it must be greater than 0")


def require_between(group: str, low: float, high: float, **values: float) -> None:
    for name, value in values.items():
        require(low <= value <= high, f"{group}.{name} is {value}: it must lie in [{low}, {high}]")


@dataclass
class MirrorConfig:
    """One place that the files of a data set can come from."""

    kind: str  # http | folder | debian
    location: str | None = None  # base URL, folder, or Debian package name; null: not given, the next is tried
    timeout: float = 10.0  # seconds without an answer before the next mirror is tried

    def __post_init__(self) -> None:
        require_choice("data.mirrors.kind", self.kind, ("http", "folder", "debian"))
        require(
            self.kind != "http" or (self.location or "http://").startswith(("http://", "https://")),
            f"data.mirrors.location is {self.location!r}: an http mirror's starts with http:// or https://",
        )
        require_positive("data.mirrors", timeout=self.timeout)


@dataclass
class DataConfig:
    """Where images come from, and what they look like."""

    name: str
    source: str  # idx | imagefolder
    licence: str
    citation: str
    image_size: int  # pixels; the models see [3, image_size, image_size]
    num_classes: int
    label_names: list[str] | None = None  # null: the class folders' names, sorted
    mirrors: list[MirrorConfig] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)  # of each decompressed file
    root: str | None = None  # your folder: root/<split>/<class>/* or root/<class>/* (imagefolder), the files (idx)
    test_fraction: float = 0.0  # imagefolder without split folders: this share of each class becomes the test split
    max_train: int | None = None  # keep only so many images, classes balanced
    max_test: int | None = None
    shard_size: int = 10000  # images per Parquet file

    def __post_init__(self) -> None:
        require_choice("data.source", self.source, ("idx", "imagefolder"))
        require_positive("data", image_size=self.image_size, num_classes=self.num_classes, shard_size=self.shard_size)
        require_between("data", 0.0, 0.9, test_fraction=self.test_fraction)
        if self.label_names is not None:
            require(
                len(self.label_names) == self.num_classes,
                f"data.label_names has {len(self.label_names)} names but data.num_classes is {self.num_classes}",
            )
            require(
                len(set(self.label_names)) == self.num_classes, "data.label_names repeats a name: make each one unique"
            )
        for name, limit in (("max_train", self.max_train), ("max_test", self.max_test)):
            require(
                limit is None or limit >= self.num_classes,
                f"data.{name} is {limit}: keep at least one image of each of the {self.num_classes} classes",
            )


@dataclass
class ClassifierConfig:
    """The small image classifier that measures class accuracy of generated images."""

    width: int
    epochs: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        require_positive("classifier", **vars(self))


@dataclass
class EncodeConfig:
    """How images become moments."""

    flip: bool  # encode each image mirrored too


@dataclass
class QuantizerConfig:
    """The post-training, dimension-wise quantizer (paper Sec. 3.2)."""

    levels: int  # B
    range: float  # latents in [-range, range] are mapped onto the levels' [-3, 3]
    statistics: str  # per_dimension | global | fixed: how loc and scale are found
    fixed_loc: float  # used by statistics=fixed only, in the VAE's own units
    fixed_scale: float
    order: str  # frequency | natural | given
    given_order: list[int] | None
    fit_images: int  # moments of so many images are used for statistics and spectra

    def __post_init__(self) -> None:
        require_choice("quantizer.statistics", self.statistics, ("per_dimension", "global", "fixed"))
        require_choice("quantizer.order", self.order, ("frequency", "natural", "given"))
        require_between("quantizer", 2, 256, levels=self.levels)
        require_positive("quantizer", range=self.range, fixed_scale=self.fixed_scale, fit_images=self.fit_images)
        require(
            (self.order == "given") == (self.given_order is not None),
            "quantizer.given_order must be a list exactly when quantizer.order is 'given'",
        )


@dataclass
class ReconstructConfig:
    """The tokenizer study: continuous against quantized reconstructions (paper Table 1)."""

    levels: list[int]
    images: int

    def __post_init__(self) -> None:
        require_positive("reconstruct", images=self.images)
        for levels in self.levels:
            require_between("reconstruct", 2, 256, levels=levels)


@dataclass
class TrainConfig:
    """The recipe of one autoregressive model (paper Table 4)."""

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
    ema_decay: float
    ema_warmup: bool  # decay grows as (1 + step) / (10 + step) up to ema_decay
    label_dropout: float
    mask_ratio_mean: float
    mask_ratio_std: float
    mask_ratio_min: float
    precision: str  # bf16 | fp32

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

    width: int
    encoder_depth: int
    decoder_depth: int
    heads: int
    head_width: int
    head_depth: int
    head_heads: int
    buffer_size: int  # class positions in front of the sequence
    dropout: float
    train: TrainConfig

    def __post_init__(self) -> None:
        sizes = {k: v for k, v in vars(self).items() if k not in ("dropout", "train")}
        require_positive("model", **sizes)
        require_between("model", 0.0, 0.9, dropout=self.dropout)
        for width, heads, name in ((self.width, self.heads, ""), (self.head_width, self.head_heads, "head_")):
            require(
                width % heads == 0, f"model.{name}width ({width}) must be a multiple of model.{name}heads ({heads})"
            )


@dataclass
class GenerateConfig:
    """How samples are drawn."""

    samples: int
    steps: int
    guidance_scale: float
    guidance_schedule: str  # linear | constant
    temperature: float
    grid_per_class: int  # columns of the picture grid

    def __post_init__(self) -> None:
        require_choice("generate.guidance_schedule", self.guidance_schedule, GUIDANCE_SCHEDULES)
        require_positive("generate", samples=self.samples, steps=self.steps, grid_per_class=self.grid_per_class)
        require_between("generate", 0.0, 100.0, temperature=self.temperature)
        require_between("generate", 1.0, 100.0, guidance_scale=self.guidance_scale)


@dataclass
class EvaluateConfig:
    """What is measured on the samples."""

    feature_size: int  # EfficientNet-Lite0's input size, in pixels
    kid_subset_size: int
    kid_subsets: int
    inception_weights: str | None  # torch-fidelity's Inception file, or `download`; null: no FID is reported
    inception_reference: str | None  # npz with mu and sigma (such as ADM's); null: the test images

    def __post_init__(self) -> None:
        require_positive(
            "evaluate", feature=self.feature_size, kid_subset=self.kid_subset_size, kid_subsets=self.kid_subsets
        )
        require(
            self.inception_reference is None or self.inception_weights is not None,
            "evaluate.inception_reference needs evaluate.inception_weights",
        )


@dataclass
class LauncherConfig:
    """Where and how stages run. Never a stage parameter: moving house must not retrain a model."""

    threads: int  # CPU threads; 0: all cores
    batch_size: int  # images per batch wherever nothing is learnt
    log_seconds: float  # between progress lines
    checkpoint_seconds: float  # between checkpoints

    def __post_init__(self) -> None:
        require_positive(
            "launcher",
            batch_size=self.batch_size,
            log_seconds=self.log_seconds,
            checkpoint_seconds=self.checkpoint_seconds,
        )


@dataclass
class VaeLossConfig:
    """Weights of the VAE's loss terms."""

    l1: float
    mse: float
    kl: float
    adversarial: float  # share of the reconstruction gradient's norm; 0 trains without a discriminator


@dataclass
class DiscriminatorConfig:
    """The VAE's opponent in training."""

    width: int
    learning_rate: float
    start: float  # share of the training after which it plays

    def __post_init__(self) -> None:
        require_positive("vae.discriminator", width=self.width, learning_rate=self.learning_rate)
        require(
            self.width % NORM_GROUPS == 0,
            f"vae.discriminator.width is {self.width}: it must be a multiple of {NORM_GROUPS}",
        )
        require_between("vae.discriminator", 0.0, 1.0, start=self.start)


@dataclass
class VaeConfig:
    """The variational autoencoder: trained here, or a folder of pretrained weights."""

    pretrained: str | None  # a diffusers AutoencoderKL folder; null: train one
    block_widths: list[int]
    layers_per_block: int
    dimensions: int  # C
    batch_size: int
    epochs: float
    optimizer: str  # adamw | muon: Muon for the convolutions' kernels, AdamW for the rest
    learning_rate: float  # AdamW's
    muon_learning_rate: float
    precision: str
    loss: VaeLossConfig
    discriminator: DiscriminatorConfig

    def __post_init__(self) -> None:
        require_choice("vae.precision", self.precision, PRECISIONS)
        require_choice("vae.optimizer", self.optimizer, OPTIMIZERS)
        require(len(self.block_widths) >= 1, "vae.block_widths is empty: name one width per resolution")
        require(
            all(width % NORM_GROUPS == 0 for width in self.block_widths),
            f"vae.block_widths {self.block_widths} must be multiples of {NORM_GROUPS}, the groups of its norms",
        )
        require_positive(
            "vae",
            layers_per_block=self.layers_per_block,
            dimensions=self.dimensions,
            batch_size=self.batch_size,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
        )


@dataclass
class Config:
    """All settings, as in params.yaml."""

    seed: int
    data: DataConfig
    classifier: ClassifierConfig
    vae: VaeConfig
    encode: EncodeConfig
    quantizer: QuantizerConfig
    reconstruct: ReconstructConfig
    train: TrainConfig  # the shared recipe that models refer to
    models: dict[str, ModelConfig]
    generate: GenerateConfig
    evaluate: EvaluateConfig
    launcher: LauncherConfig

    def __post_init__(self) -> None:
        if self.quantizer.given_order is not None:
            require(
                sorted(self.quantizer.given_order) == list(range(self.vae.dimensions)),
                f"quantizer.given_order must name each of vae.dimensions ({self.vae.dimensions}) dimensions once",
            )
        if self.vae.pretrained is None:
            stride = 2 ** (len(self.vae.block_widths) - 1)
            require(
                self.data.image_size % stride == 0,
                f"data.image_size ({self.data.image_size}) must be a multiple of {stride}, "
                f"the stride of a VAE with {len(self.vae.block_widths)} vae.block_widths",
            )
            positions = (self.data.image_size // stride) ** 2
            require(
                self.generate.steps <= positions,
                f"generate.steps is {self.generate.steps}: use at most {positions}, one for each position",
            )
        require(len(self.models) > 0, "no model is configured: say model=tiny")
        taken = sorted({"vae", "quantizer", "classifier"} & set(self.models))
        require(not taken, f"a model cannot be called {', '.join(taken)}: models/ has a folder of that name")
