"""The typed schema of conf/ and params.yaml, and how one becomes the other.

conf/ is written by hand in Hydra groups; params.yaml is composed from it by ``tokenbridge params``
and is what DVC and every stage read. Both pass through ``validate``, so that an unknown key or a
bad value stops a run before any work starts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokenbridge.errors import UserError
from tokenbridge.files import atomic_write_text

PARAMS_FILE = "params.yaml"
PRECISIONS = ("bf16", "fp32")
OPTIMIZERS = ("adamw", "muon")


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

    family: str  # gaussian: levels of N(0, 1), the released quantizer
    levels: int  # B
    range: float  # gaussian: latents in [-range, range] are mapped onto the levels' [-3, 3]
    statistics: str  # per_dimension | global | fixed: how loc and scale are found
    fixed_loc: float  # used by statistics=fixed only, in the VAE's own units
    fixed_scale: float
    order: str  # frequency | natural | given
    given_order: list[int] | None
    fit_images: int  # moments of so many images are used for statistics and spectra

    def __post_init__(self) -> None:
        require_choice("quantizer.family", self.family, ("gaussian",))
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
        require_choice("generate.guidance_schedule", self.guidance_schedule, ("linear", "constant"))
        require_positive(
            "generate", samples=self.samples, steps=self.steps, temperature=self.temperature, grid=self.grid_per_class
        )
        require_between("generate", 1.0, 100.0, guidance_scale=self.guidance_scale)


@dataclass
class EvaluateConfig:
    """What is measured on the samples."""

    feature_size: int  # EfficientNet-Lite0's input size, in pixels
    kid_subset_size: int
    kid_subsets: int
    inception_weights: str | None  # torch-fidelity's Inception file; null: no FID is reported
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
        require(self.width % 8 == 0, f"vae.discriminator.width is {self.width}: it must be a multiple of 8")
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
        require(len(self.models) > 0, "no model is configured: say model=tiny")
        taken = sorted({"vae", "quantizer", "classifier"} & set(self.models))
        require(not taken, f"a model cannot be called {', '.join(taken)}: models/ has a folder of that name")


def validate(composed: DictConfig) -> Config:
    """Check types, unknown keys and ranges.

    Raises:
        ConfigError: naming the key and what it should be.
    """
    missing = OmegaConf.missing_keys(composed)
    require(not missing, f"no value for {', '.join(sorted(missing))}: set it in conf/ or on the command line")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), composed)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {_brief(error)}") from error
    assert isinstance(config, Config)
    return config


def compose_config(overrides: Sequence[str] = (), conf_dir: Path = Path("conf")) -> DictConfig:
    """Compose conf/ with Hydra overrides and resolve every interpolation.

    Raises:
        ConfigError: an override names no setting or group, or gives a value that cannot work.
    """
    try:
        with initialize_config_dir(str(conf_dir.resolve()), version_base=None):
            composed = compose("config", overrides=list(overrides))
        OmegaConf.resolve(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{_brief(error)} ({conf_dir} names every setting and choice)") from error
    validate(composed)
    return composed


def _brief(error: Exception) -> str:
    """The message in one line, without search paths and without advice to add keys, which the schema refuses."""
    text = re.split(r"\n(?:Config search path|To append|See https:|\s+full_key:)", str(error))[0]
    return " ".join(text.split())


def write_params(overrides: Sequence[str] = (), root: Path = Path()) -> Config:
    """Write root/params.yaml from root/conf, byte for byte as ``dvc exp run`` would."""
    composed = compose_config(overrides, root / "conf")
    atomic_write_text(root / PARAMS_FILE, OmegaConf.to_yaml(composed))
    return validate(composed)


def load_params(root: Path = Path()) -> Config:
    """Read root/params.yaml as a checked ``Config``."""
    path = root / PARAMS_FILE
    require(path.exists(), f"{path} is missing: run `tokenbridge params` to compose it from conf/")
    loaded = OmegaConf.load(path)
    require(isinstance(loaded, DictConfig), f"{path} is not a mapping: run `tokenbridge params` to compose it again")
    assert isinstance(loaded, DictConfig)
    return validate(loaded)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, the form MLflow shows."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
