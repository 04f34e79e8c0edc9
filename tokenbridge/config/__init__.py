"""The typed schema of conf/ and params.yaml, with the ranges of values that can work.

``tokenbridge.config.params`` passes every composition through it, so that an unknown key or a bad value stops a run
before any work starts.
"""

# Importers take these names from here.
# mypy: implicit-reexport
# ruff: noqa: F401

from pydantic import Field

from tokenbridge.base.checks import FP32, ConfigError, require
from tokenbridge.config.data import IMAGENET, ClassifierConfig, DataConfig, MirrorConfig
from tokenbridge.config.launcher import FSDP, LauncherConfig
from tokenbridge.config.model import (
    CONTINUOUS_HEADS,
    HEAD_MODULATIONS,
    HEADS,
    LEVEL_HEADS,
    EvaluateConfig,
    GenerateConfig,
    ModelConfig,
    TrainConfig,
    sampling_mistakes,
)
from tokenbridge.config.operations import PlanConfig, PromotionConfig, StorageConfig
from tokenbridge.config.tokenizer import (
    CODEBOOK_FAMILIES,
    E8_DIMENSIONS,
    LEVEL_FAMILIES,
    NORM_GROUPS,
    SECOND_MOMENTS,
    SINGLE_FAMILIES,
    EncodeConfig,
    QuantizerConfig,
    ReconstructConfig,
    TokenizeConfig,
    VaeConfig,
)
from tokenbridge.config.types import Integer, Name, Settings, refuse

MOMENTS = "moments"  # models are trained on moments unless tokens are stored
MAX_CLASSES = 70_000  # limit for the classes of one prediction of the head: levels ** head_group
ENOUGH = 20  # more than MAX_CLASSES with 2 levels already
FOLDERS = {"vae", "quantizer", "classifier"}  # of models/ that are no autoregressive models


class Config(Settings):
    """All settings, as in params.yaml."""

    seed: Integer
    data: DataConfig
    classifier: ClassifierConfig
    vae: VaeConfig
    encode: EncodeConfig
    quantizer: QuantizerConfig
    reconstruct: ReconstructConfig
    tokenize: TokenizeConfig
    train_on: str  # moments, or one of tokenize.outs
    train: TrainConfig  # the shared recipe that models refer to
    models: dict[Name, ModelConfig]
    generate: GenerateConfig
    evaluate: EvaluateConfig
    launcher: LauncherConfig
    promotion: PromotionConfig
    plan: PlanConfig
    storage: StorageConfig = Field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        choices, taken = [MOMENTS, *self.tokenize.outs], sorted(FOLDERS & set(self.models))
        listed = f"choose one of {', '.join(choices)} (tokens=packed stores tokens)"
        refuse(
            self._mistakes_in_dimensions()
            | self._mistakes_in_positions()
            | self._mistakes_in_combinations()
            | self._mistakes_in_sampling()
            | {
                f"train_on is {self.train_on!r}: {listed}": self.train_on not in choices,
                "models is empty: name a model, as in model=tiny": not self.models,
                f"models has {', '.join(taken)}: choose another name, because models/ has such a folder": bool(taken),
            }
        )

    @property
    def dimensions(self) -> int:
        """C, the number of dimensions of a token."""
        return self.vae.dimensions * self.quantizer.patch_size**2

    @property
    def stride(self) -> int:
        """Pixels per position along one side; right for a pretrained VAE only if vae.block_widths describes it."""
        return 2 ** (len(self.vae.block_widths) - 1) * self.quantizer.patch_size

    def _mistakes_in_dimensions(self) -> dict[str, bool]:
        dimensions, quantizer = self.dimensions, self.quantizer
        slots, classes, order = quantizer.slots(dimensions), quantizer.classes, quantizer.given_order
        mistakes = {
            f"quantizer.given_order is {order}: must name each of the {dimensions} dimensions of a token once "
            "(vae.dimensions times quantizer.patch_size squared)": order is not None
            and (len(order) != dimensions or sorted(order) != list(range(dimensions))),
            f"quantizer.codebooks is {quantizer.codebooks}: must divide the {dimensions} dimensions of a token": (
                quantizer.family == "codebook" and dimensions % slots != 0
            ),
            f"quantizer.family=e8 needs a multiple of {E8_DIMENSIONS} dimensions, and a token has {dimensions}: choose "
            "another family, vae.dimensions or quantizer.patch_size": quantizer.family == "e8"
            and dimensions % E8_DIMENSIONS != 0,
            f"tokenize stores indices of a byte at most, and quantizer.family={quantizer.family} has others: train on "
            "moments (tokens=none)": bool(self.tokenize.outs) and (classes is None or classes > 2**8),
        }
        advice = "set quantizer.levels (codewords of a codebook) to a power of 2"
        if quantizer.family in SECOND_MOMENTS:
            advice = "choose another head or quantizer.family"
        for name, model in self.models.items():
            start, group = f"models.{name}.head_group is {model.head_group}", min(model.head_group, ENOUGH)
            mistakes[f"{start}: must divide the {slots} slots of a token"] = slots % model.head_group != 0
            if classes is None:
                continue
            bits = (1 if model.trunk == "elements" else slots) * (classes.bit_length() - 1)
            of_bits = model.head == "bits" and not model.pretrained
            mistakes |= {
                f"{start}, which makes {classes}^{model.head_group} classes: at most {MAX_CLASSES:,} can be handled, "
                "so lower head_group or quantizer.levels": classes**group > MAX_CLASSES,
                f"models.{name}.head is bits, and {classes} levels are no whole number of bits: {advice}": (
                    of_bits and classes.bit_count() != 1
                ),
                f"models.{name}.head_steps is {model.head_steps}: must be at most {bits}, the bits it draws at once": (
                    of_bits and model.head_steps > bits
                ),
            }
        return mistakes

    def _mistakes_in_combinations(self) -> dict[str, bool]:
        """Check that quantizer, heads and sampling go together."""
        trained = {name: model for name, model in self.models.items() if not model.pretrained}
        without = [name for name, model in trained.items() if model.draft_depth is None]
        continuous = self.quantizer.classes is None
        others = [name for name, model in trained.items() if (model.head in CONTINUOUS_HEADS) != continuous]
        wanted = ("one of " if continuous else "none of ") + ", ".join(CONTINUOUS_HEADS)
        whole, generate = [name for name, model in trained.items() if model.head not in LEVEL_HEADS], self.generate
        elements = [name for name, model in trained.items() if model.trunk == "elements"]
        family, order = self.quantizer.family, self.quantizer.order
        needs = f"which trunk=elements of {', '.join(elements)} needs"
        codewords, entries = self.vae.codewords, self.quantizer.codewords
        return {
            f"quantizer.order is {order}: set it to natural, {needs}": bool(elements) and order != "natural",
            f"quantizer.family is {family}: choose one of {', '.join(SINGLE_FAMILIES)}, {needs}": bool(elements)
            and family not in SINGLE_FAMILIES,
            f"vae.codewords is {codewords}, but quantizer.family=trained_codebook has quantizer.codewords={entries}: "
            "set both to the same number (vae=vq does)": self.quantizer.family == "trained_codebook"
            and codewords != entries,
            f"generate.speculative is true, but models without a draft are to be sampled ({', '.join(without)}): "
            "set their draft_depth, or generate.speculative=false": generate.speculative and bool(without),
            f"quantizer.family is {self.quantizer.family}, so the head of a model must be {wanted}: set that of "
            f"{', '.join(others)}": bool(others),
            "generate.top_p and order=confidence need the probabilities of levels, which the heads of "
            f"{', '.join(whole)} do not give: set top_p=1 and another order": bool(whole)
            and (generate.top_p < 1 or generate.order == "confidence"),
            "generate.guidance_on is output, but guidance cannot mix the outputs of mixture heads, which are "
            "densities: set it to features": generate.guidance_on == "output"
            and any(model.head == "mixture" for model in trained.values()),
        }

    def _mistakes_in_sampling(self) -> dict[str, bool]:
        """Check that every model that is trained here can be sampled as set."""
        known = self.vae.pretrained is None
        positions = (self.data.image_size // self.stride) ** 2 if known else self.generate.steps or 1
        return {
            f"generate.{message}": wrong
            for model in self.models.values()
            if not model.pretrained
            for message, wrong in sampling_mistakes(model.trunk, self.generate, positions).items()
        }

    def _mistakes_in_positions(self) -> dict[str, bool]:
        """Check sizes that are known in advance only if the VAE is trained here."""
        if self.vae.pretrained is not None:
            return {}
        size, positions, steps = self.data.image_size, (self.data.image_size // self.stride) ** 2, self.generate.steps
        single = all(model.trunk == "elements" for model in self.models.values())
        most, unit = (positions * self.dimensions, "number") if single else (positions, "position")
        return {
            f"data.image_size is {size}: must be a multiple of {self.stride}, the stride of a VAE with "
            f"{len(self.vae.block_widths)} vae.block_widths times quantizer.patch_size": size % self.stride != 0,
            f"generate.steps is {steps}: must be at most {most}, one for each {unit}": (
                steps is not None and steps > most
            ),
        }
