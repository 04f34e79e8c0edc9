"""Settings of the steps from images to tokens: VAE, moments, quantizer."""

import math
from typing import Annotated, Literal

from pydantic import Field

from tokenbridge.base.checks import Precision
from tokenbridge.config.types import (
    Amount,
    Integer,
    Name,
    Number,
    Optimizer,
    Positive,
    PositiveNumber,
    Settings,
    Share,
    refuse,
)

NORM_GROUPS = 8  # in each norm of the trained VAE and its discriminator

PostTrainingFamily = Literal[
    "gaussian", "uniform", "lloyd_max", "entropy_coded", "e8", "codebook", "residual", "continuous"
]
QuantizerFamily = Literal[PostTrainingFamily, "trained_codebook"]
LEVEL_FAMILIES = ("gaussian", "uniform", "lloyd_max")  # the dimension-wise ones of a given number of levels
SINGLE_FAMILIES = (*LEVEL_FAMILIES, "entropy_coded", "continuous")  # a number of a token is one dimension
CODEBOOK_FAMILIES = ("codebook", "residual", "trained_codebook")
# squared error for each dimension, where cells have the volume 1: of integers, and of E8 (Conway and Sloane 1982)
SECOND_MOMENTS = {"entropy_coded": 1 / 12, "e8": 929 / 12960}
E8_DIMENSIONS = 8
MAX_LEVELS = 256
Packing = Literal["bits", "uint8"]
Levels = Annotated[Integer, Field(ge=2, le=MAX_LEVELS)]
Codewords = Annotated[Integer, Field(ge=2, le=65536)]
NormWidth = Annotated[Positive, Field(multiple_of=NORM_GROUPS)]


class VaeLossConfig(Settings):
    """Weights of the VAE's loss terms."""

    l1: Amount
    mse: Amount
    kl: Amount
    adversarial: Amount  # share of the reconstruction gradient's norm; 0 trains without a discriminator


class DiscriminatorConfig(Settings):
    """The VAE's opponent in training."""

    width: NormWidth
    learning_rate: PositiveNumber
    start: Share  # share of the training after which the discriminator takes part


class VaeConfig(Settings):
    """The variational autoencoder: trained here, or a folder of pretrained weights."""

    pretrained: str | None  # a diffusers AutoencoderKL folder; null: train one
    block_widths: Annotated[list[NormWidth], Field(min_length=1, max_length=16)]  # one for each resolution
    layers_per_block: Positive
    dimensions: Positive  # C
    codewords: Codewords | None  # V, of a codebook trained with the VAE (VQ) in place of the KL term; null: none
    batch_size: Positive
    epochs: PositiveNumber
    optimizer: Optimizer
    learning_rate: PositiveNumber  # AdamW's
    muon_learning_rate: Amount
    precision: Precision
    loss: VaeLossConfig
    discriminator: DiscriminatorConfig

    def __post_init__(self) -> None:
        both = self.pretrained is not None and self.codewords is not None
        refuse({f"codewords is {self.codewords}, but a vae.pretrained is not trained: set one of them to null": both})


class EncodeConfig(Settings):
    """Settings of how images become moments."""

    flip: bool  # also encode each image mirrored
    images: (
        Positive | None
    )  # encode only N training images, balanced over classes, enough to fit a quantizer; null: all
    precision: Precision


class QuantizerConfig(Settings):
    """The post-training quantizer: dimension-wise (paper Sec. 3.2), or what it is compared with.

    Attributes:
        family: dimension-wise ``gaussian`` (the released one), ``uniform`` or ``lloyd_max`` (fitted to the data);
            ``entropy_coded``: equal steps that give a wanted error; ``e8``: likewise, a lattice of 8 dimensions;
            ``codebook``: vectors fitted by k-means; ``residual``: each codebook codes what the earlier ones left;
            ``trained_codebook``: the codebook that was trained with the VAE;
            ``continuous``: none, tokens are the latents themselves.
    """

    family: QuantizerFamily
    levels: Levels  # B, of the dimension-wise families
    codebooks: Positive  # of codebook: G, each covers C / G dimensions; of residual: R, each covers all
    codewords: Codewords  # V, in each codebook
    range: PositiveNumber  # of all but lloyd_max and codebooks: levels cover normalised latents in [-range, range]
    distortion: PositiveNumber  # D, of entropy_coded and e8: the wanted squared error of normalised latents
    statistics: Literal["per_dimension", "global", "fixed"]  # how loc and scale are found
    fixed_loc: Number  # used by statistics=fixed only, in the VAE's own units
    fixed_scale: PositiveNumber
    order: Literal["frequency", "natural", "given"]
    given_order: list[Integer] | None
    fit_images: Positive  # number of images whose moments are used for statistics and spectra
    patch_size: Positive  # p: a token covers p x p positions of the VAE, and so has p * p * C dimensions

    def __post_init__(self) -> None:
        misplaced = (self.order == "given") != (self.given_order is not None)
        trained, levels = self.family == "trained_codebook", self.classes or 0
        refuse(
            {
                f"given_order is {self.given_order}: give a list exactly if quantizer.order is 'given'": misplaced,
                f"codebooks is {self.codebooks}: a trained codebook is one for a whole token, so set it to 1": trained
                and self.codebooks != 1,
                f"patch_size is {self.patch_size}: a trained codebook covers one position, so set it to 1": trained
                and self.patch_size != 1,
                "statistics is per_dimension: unequal scales would change which trained codeword is nearest, so set it "
                "to global": trained and self.statistics == "per_dimension",
                f"distortion is {self.distortion:g}, which makes {levels:,} levels in +-{self.range:g}: 3 to "
                f"{MAX_LEVELS} can be handled, so change distortion or range": self.family in SECOND_MOMENTS
                and not 3 <= levels <= MAX_LEVELS,
            }
        )

    @property
    def step(self) -> float:
        """The scale of the integers or of E8 at which the squared error of a smooth density is the distortion."""
        return math.sqrt(self.distortion / SECOND_MOMENTS[self.family])

    @property
    def reach(self) -> int:
        """n: steps from -n to n have cells that cover [-range, range]."""
        return math.ceil(self.range / self.step - 0.5)

    def slots(self, dimensions: int) -> int:
        """Return G, the numbers of a token with so many dimensions."""
        if self.family == "e8":
            return dimensions + dimensions // E8_DIMENSIONS
        return self.codebooks if self.family in CODEBOOK_FAMILIES else dimensions

    @property
    def classes(self) -> int | None:
        """The number of values of a slot; None: any real number."""
        if self.family == "continuous":
            return None
        if self.family in SECOND_MOMENTS:
            return 2 * self.reach + 1
        return self.codewords if self.family in CODEBOOK_FAMILIES else self.levels


class ReconstructConfig(Settings):
    """The tokenizer study: continuous against quantized reconstructions (paper Table 1).

    It covers the configured quantizer, and its variants with one of these settings changed.
    """

    levels: list[Levels]
    ranges: list[PositiveNumber]  # of the gaussian and uniform families
    families: list[PostTrainingFamily]
    images: Positive
    precision: Precision


class TokenizeConfig(Settings):
    """Tokens as stored data, on which models can be trained in place of moments."""

    outs: Annotated[list[Name], Field(max_length=1)]  # [tokens]: the stage writes data/tokens; []: no stage
    packing: Packing  # bits (6 for 64 levels) | uint8 (a byte each)
    samples: Positive  # K: posterior samples stored for each image
