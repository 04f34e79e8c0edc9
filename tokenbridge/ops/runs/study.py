"""The studies: which experiments each compares, and what its page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

MODEL = "tiny"
METRICS = (  # columns from reports/evaluate; on the validation images, because settings are chosen by them
    "validation_fd_efficientnet_lite0_32px",
    "validation_kid_efficientnet_lite0_32px",
    "validation_precision_efficientnet_lite0_32px",
    "validation_recall_efficientnet_lite0_32px",
    "class_accuracy",
)
SHOWN = {  # column of the page -> column of the table, digits
    "seeds": ("seed", 0),
    "validation loss": ("validation_loss", 3),
    "Fréchet distance": (METRICS[0], 2),
    "KID": (METRICS[1], 4),
    "class accuracy": ("class_accuracy", 3),
    "precision": (METRICS[2], 2),
    "recall": (METRICS[3], 2),
    "parameters": ("parameters", 0),
}
SAMPLE_MS, TRAIN_MS = "sample_ms", "train_ms"  # of one image of many
SAMPLE_ONE_MS = "sample_one_ms"  # of an image that is drawn alone
SAMPLE_MIB = "sample_mib"  # tensors that exist at once while the tokens of many images are drawn, of each
SAMPLE_GFLOP, TRAIN_GFLOP = "sample_gflop", "train_gflop"  # of one image
BITS = "bits"  # of the tokens of one image, without entropy coding; continuous tokens have none
CODED = "coded_bits"  # the same, coded by the model's own probabilities
CELL_LOSS = "cell_loss"  # of a mixture: the cross-entropy of the levels of the base, in nats
RATE = "rate"  # multiple of the recipe's learning rates
QUALITY = {name: SHOWN[name] for name in ("seeds", "validation loss", "Fréchet distance", "class accuracy")}
TIMES = {
    "sampling, ms": (SAMPLE_MS, 1),
    "sampling alone, ms": (SAMPLE_ONE_MS, 0),
    "sampling, MiB": (SAMPLE_MIB, 2),
    "training, ms": (TRAIN_MS, 2),
}
OPERATIONS = {"sampling, GFLOP": (SAMPLE_GFLOP, 2), "training, GFLOP": (TRAIN_GFLOP, 3)}
CHOSEN = {"times the learning rate": (RATE, 1), "guidance": ("guidance_scale", 1), "temperature": ("temperature", 2)}
COMPARED = {name: column for name, column in SHOWN.items() if name != "validation loss"} | {
    "bits": (BITS, 0),
    "coded bits": (CODED, 0),
}


@dataclass(frozen=True)
class Study:
    """A set of experiments with their page under docs/.

    Attributes:
        command: of ``tokenbridge``.
        name: of the folder in conf/experiment.
        page_name: of the page, its table, and the worktree in .work/.
        shown: column of the page -> column of the table, digits.
        base: the experiment that the others are compared with.
        rates: multiples of the recipe's learning rates; each experiment is trained with the one that suits it best.
        search: settings of ``generate`` -> values; each experiment is sampled with those that suit it best.
        costs: whether times and operations are measured too.
        seed: the setting that a row's seed gives: of the training, or of the whole pipeline, with its own VAE.
    """

    command: str
    name: str
    page_name: str
    shown: Mapping[str, tuple[str, int]]
    base: str = "base"
    rates: Sequence[float] = ()
    search: Mapping[str, Sequence[float]] = field(default_factory=dict)
    costs: bool = False
    seed: str = "train.seed"

    @property
    def experiments(self) -> Path:
        return Path("conf/experiment", self.name)

    @property
    def table(self) -> Path:
        return Path("docs", f"{self.page_name}.csv")

    @property
    def page(self) -> Path:
        return Path("docs", f"{self.page_name}.md")

    @property
    def worktree(self) -> Path:
        return Path(".work", self.page_name)


ABLATIONS = Study("ablations", "ablation", "ablations", SHOWN)
SPEED = Study("speed", "speed", "speed", QUALITY | TIMES, costs=True)
COMPARISON = Study(
    "compare",
    "compare",
    "comparison",
    COMPARED | CHOSEN | OPERATIONS | TIMES,
    base="tokenbridge",
    rates=(0.5, 1.0, 2.0),
    search={"guidance_scale": (1.5, 2.0, 3.0, 4.0), "temperature": (1.0, 0.85, 0.7, 0.55, 0.4)},
    costs=True,
    seed="seed",
)
FULL_COMPARISON = replace(COMPARISON, command="compare-full", name="compare/full", page_name="comparison_full")
STUDIES = (ABLATIONS, SPEED, COMPARISON, FULL_COMPARISON)
