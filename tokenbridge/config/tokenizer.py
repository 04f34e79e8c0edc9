"""Settings of the steps from images to tokens: VAE, moments, quantizer."""

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

PostTrainingFamily = Literal["gaussian", "uniform", "lloyd_max", "codebook", "continuous"]
QuantizerFamily = Literal[PostTrainingFamily, "trained_codebook"]
LEVEL_FAMILIES = ("gaussian", "uniform", "lloyd_max")  # the dimension-wise ones
CODEBOOK_FAMILIES = ("codebook", "trained_codebook")
Packing = Literal["bits", "uint8"]
Levels = Annotated[Integer, Field(ge=2, le=256)]
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
            ``codebook``: vectors fitted by k-means; ``trained_codebook``: the codebook that was trained with the VAE;
            ``continuous``: none, tokens are the latents themselves.
    """

    family: QuantizerFamily
    levels: Levels  # B, of the dimension-wise families
    codebooks: Positive  # G, of the family codebook: each covers C / G dimensions; 1: one index for a whole token
    codewords: Codewords  # V, in each codebook
    range: PositiveNumber  # of gaussian and uniform: the levels cover normalised latents in [-range, range]
    statistics: Literal["per_dimension", "global", "fixed"]  # how loc and scale are found
    fixed_loc: Number  # used by statistics=fixed only, in the VAE's own units
    fixed_scale: PositiveNumber
    order: Literal["frequency", "natural", "given"]
    given_order: list[Integer] | None
    fit_images: Positive  # number of images whose moments are used for statistics and spectra
    patch_size: Positive  # p: a token covers p x p positions of the VAE, and so has p * p * C dimensions

    def __post_init__(self) -> None:
        misplaced = (self.order == "given") != (self.given_order is not None)
        trained = self.family == "trained_codebook"
        refuse(
            {
                f"given_order is {self.given_order}: give a list exactly if quantizer.order is 'given'": misplaced,
                f"codebooks is {self.codebooks}: a trained codebook is one for a whole token, so set it to 1": trained
                and self.codebooks != 1,
                f"patch_size is {self.patch_size}: a trained codebook covers one position, so set it to 1": trained
                and self.patch_size != 1,
                "statistics is per_dimension: unequal scales would change which trained codeword is nearest, so set it "
                "to global": trained and self.statistics == "per_dimension",
            }
        )

    def slots(self, dimensions: int) -> int:
        """Return G, the numbers of a token with so many dimensions."""
        return self.codebooks if self.family in CODEBOOK_FAMILIES else dimensions

    @property
    def classes(self) -> int | None:
        """The number of values of a slot; None: any real number."""
        if self.family == "continuous":
            return None
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
