"""The typed schema of conf/ and params.yaml, with the ranges of values that can work.

``tokenbridge.config.params`` passes every composition through it, so that an unknown key or a bad value stops a run
before any work starts.
"""

from dataclasses import dataclass, field

from tokenbridge.base.checks import AUTO, BF16, FP32, ConfigError, require, require_choice
from tokenbridge.config.data import IMAGENET, ClassifierConfig, DataConfig, HubConfig, MirrorConfig
from tokenbridge.config.launcher import DDP, FSDP, LOCAL, KubernetesConfig, LauncherConfig, SlurmConfig
from tokenbridge.config.model import (
    GUIDANCE_SCHEDULES,
    HEADS,
    REVEAL_ORDERS,
    EvaluateConfig,
    GenerateConfig,
    ModelConfig,
    TrainConfig,
    check_sampling,
)
from tokenbridge.config.planning import GpuConfig, PlanConfig
from tokenbridge.config.promotion import PromotionConfig
from tokenbridge.config.storage import StorageConfig
from tokenbridge.config.tokenizer import (
    NORM_GROUPS,
    PACKINGS,
    QUANTIZER_FAMILIES,
    DiscriminatorConfig,
    EncodeConfig,
    QuantizerConfig,
    ReconstructConfig,
    TokenizeConfig,
    VaeConfig,
    VaeLossConfig,
)

MOMENTS = "moments"  # models are trained on moments unless tokens are stored
MAX_CLASSES = 70_000  # limit for the classes of one prediction of the head: levels ** head_group

__all__ = [
    "AUTO",
    "BF16",
    "DDP",
    "FP32",
    "FSDP",
    "GUIDANCE_SCHEDULES",
    "HEADS",
    "IMAGENET",
    "LOCAL",
    "MAX_CLASSES",
    "MOMENTS",
    "NORM_GROUPS",
    "PACKINGS",
    "QUANTIZER_FAMILIES",
    "REVEAL_ORDERS",
    "ClassifierConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DiscriminatorConfig",
    "EncodeConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "GpuConfig",
    "HubConfig",
    "KubernetesConfig",
    "LauncherConfig",
    "MirrorConfig",
    "ModelConfig",
    "PlanConfig",
    "PromotionConfig",
    "QuantizerConfig",
    "ReconstructConfig",
    "SlurmConfig",
    "StorageConfig",
    "TokenizeConfig",
    "TrainConfig",
    "VaeConfig",
    "VaeLossConfig",
    "check_sampling",
    "require",
    "require_choice",
]


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
    tokenize: TokenizeConfig
    train_on: str  # moments, or one of tokenize.outs
    train: TrainConfig  # the shared recipe that models refer to
    models: dict[str, ModelConfig]
    generate: GenerateConfig
    evaluate: EvaluateConfig
    launcher: LauncherConfig
    promotion: PromotionConfig
    plan: PlanConfig
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        self._check_dimensions()
        self._check_positions()
        choices = [MOMENTS, *self.tokenize.outs]
        require(
            self.train_on in choices,
            f"train_on is {self.train_on!r}: choose one of {', '.join(choices)} (tokens=packed stores tokens)",
        )
        require(len(self.models) > 0, "no model is configured: say model=tiny")
        taken = sorted({"vae", "quantizer", "classifier"} & set(self.models))
        require(not taken, f"a model cannot be called {', '.join(taken)}: models/ has a folder of that name")

    @property
    def dimensions(self) -> int:
        """C, the number of dimensions of a token."""
        return self.vae.dimensions * self.quantizer.patch_size**2

    @property
    def stride(self) -> int:
        """Pixels per position along one side; right for a pretrained VAE only if vae.block_widths describes it."""
        return 2 ** (len(self.vae.block_widths) - 1) * self.quantizer.patch_size

    def _check_dimensions(self) -> None:
        dimensions = self.dimensions
        if self.quantizer.given_order is not None:
            require(
                sorted(self.quantizer.given_order) == list(range(dimensions)),
                f"quantizer.given_order must name each of the {dimensions} dimensions of a token once "
                "(vae.dimensions times quantizer.patch_size squared)",
            )
        for name, model in self.models.items():
            require(
                dimensions % model.head_group == 0,
                f"models.{name}.head_group is {model.head_group}: it must divide the {dimensions} dimensions",
            )
            classes = self.quantizer.levels**model.head_group
            require(
                classes <= MAX_CLASSES,
                f"models.{name}.head_group {model.head_group} makes {classes:,} classes of {self.quantizer.levels} "
                f"levels: at most {MAX_CLASSES:,} can be handled, so lower head_group or quantizer.levels",
            )

    def _check_positions(self) -> None:
        """Check sizes that are known in advance only if the VAE is trained here."""
        if self.vae.pretrained is not None:
            return
        require(
            self.data.image_size % self.stride == 0,
            f"data.image_size ({self.data.image_size}) must be a multiple of {self.stride}, the stride of a VAE "
            f"with {len(self.vae.block_widths)} vae.block_widths times quantizer.patch_size",
        )
        positions = (self.data.image_size // self.stride) ** 2
        require(
            self.generate.steps <= positions,
            f"generate.steps is {self.generate.steps}: use at most {positions}, one for each position",
        )
