"""Settings of the steps from images to tokens: VAE, moments, quantizer."""

from dataclasses import dataclass

from tokenbridge.base.checks import (
    OPTIMIZERS,
    PRECISIONS,
    require,
    require_between,
    require_choice,
    require_positive,
)

QUANTIZER_FAMILIES = ("gaussian", "uniform", "lloyd_max")
PACKINGS = ("bits", "uint8")
NORM_GROUPS = 8  # in each norm of the trained VAE and its discriminator


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
    start: float  # share of the training after which the discriminator takes part

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
class EncodeConfig:
    """Settings of how images become moments."""

    flip: bool  # also encode each image mirrored
    images: int | None  # encode only the first N training images, enough to fit a quantizer; null: all
    precision: str

    def __post_init__(self) -> None:
        require_choice("encode.precision", self.precision, PRECISIONS)
        require(self.images is None or self.images > 0, f"encode.images is {self.images}: it must be greater than 0")


@dataclass
class QuantizerConfig:
    """The post-training, dimension-wise quantizer (paper Sec. 3.2)."""

    family: str  # gaussian (the released one) | uniform | lloyd_max (fitted to the data)
    levels: int  # B
    range: float  # of gaussian and uniform: the levels cover normalised latents in [-range, range]
    statistics: str  # per_dimension | global | fixed: how loc and scale are found
    fixed_loc: float  # used by statistics=fixed only, in the VAE's own units
    fixed_scale: float
    order: str  # frequency | natural | given
    given_order: list[int] | None
    fit_images: int  # number of images whose moments are used for statistics and spectra
    patch_size: int  # p: a token covers p x p positions of the VAE, and so has p * p * C dimensions

    def __post_init__(self) -> None:
        require_choice("quantizer.family", self.family, QUANTIZER_FAMILIES)
        require_choice("quantizer.statistics", self.statistics, ("per_dimension", "global", "fixed"))
        require_choice("quantizer.order", self.order, ("frequency", "natural", "given"))
        require_between("quantizer", 2, 256, levels=self.levels)
        require_positive(
            "quantizer",
            range=self.range,
            fixed_scale=self.fixed_scale,
            fit_images=self.fit_images,
            patch_size=self.patch_size,
        )
        require(
            (self.order == "given") == (self.given_order is not None),
            "quantizer.given_order must be a list exactly when quantizer.order is 'given'",
        )


@dataclass
class ReconstructConfig:
    """The tokenizer study: continuous against quantized reconstructions (paper Table 1).

    It covers the configured quantizer, and its variants with one of these settings changed.
    """

    levels: list[int]
    ranges: list[float]  # of the gaussian and uniform families
    families: list[str]
    images: int
    precision: str

    def __post_init__(self) -> None:
        require_choice("reconstruct.precision", self.precision, PRECISIONS)
        require_positive("reconstruct", images=self.images)
        for levels in self.levels:
            require_between("reconstruct", 2, 256, levels=levels)
        for value in self.ranges:
            require_positive("reconstruct", ranges=value)
        for family in self.families:
            require_choice("reconstruct.families", family, QUANTIZER_FAMILIES)


@dataclass
class TokenizeConfig:
    """Tokens as stored data, on which models can be trained in place of moments."""

    outs: list[str]  # [tokens] makes the stage write data/tokens; []: there is no such stage
    packing: str  # bits (6 for 64 levels) | uint8 (a byte each)
    samples: int  # K: posterior samples stored for each image

    def __post_init__(self) -> None:
        require_choice("tokenize.packing", self.packing, PACKINGS)
        require_positive("tokenize", samples=self.samples)
        require(len(self.outs) <= 1, f"tokenize.outs is {self.outs}: one name at most")
