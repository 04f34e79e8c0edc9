"""Small parts that many tests use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tokenbridge.base.checks import BF16, FP32
from tokenbridge.base.console import log_to_console
from tokenbridge.base.device import has_bf16
from tokenbridge.base.protocols import Discard
from tokenbridge.config import LauncherConfig, ModelConfig, QuantizerConfig, TrainConfig
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer, fit_quantizer
from tokenbridge.training.trainer import NOT_MODEL_ARGUMENTS

pytest_plugins = [
    "pytester",
    "tests.support.programs",
    "tests.support.services",
    "tests.support.slurm",
    "tests.pipeline.fixtures",
]

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

# what is tested in both precisions is not tested in one that this processor emulates, tens of times slower
PRECISIONS = [FP32, BF16] if has_bf16(torch.device("cpu")) else [FP32]
LAUNCHER = LauncherConfig(
    kind="local",
    nodes=1,
    processes=1,
    max_restarts=3,
    strategy="ddp",
    accumulation=1,
    checkpoint_activations=False,
    compile=False,
    keep_checkpoints=2,
    keep_every=0,
    threads=0,
    batch_size=8,
    log_seconds=1e9,
    checkpoint_seconds=0.0001,
    checkpoint_share=1e9,  # whatever it costs
    gpu_group="tests",
)


@pytest.fixture(autouse=True)
def console() -> None:
    log_to_console()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tensors are tiny here, and other processes may be at work; what a test set is not the next one's."""
    torch.set_num_threads(1)


QUANTIZER = QuantizerConfig(
    family="gaussian",
    levels=8,
    range=5.0,
    statistics="per_dimension",
    fixed_loc=0.0,
    fixed_scale=1.0,
    order="frequency",
    given_order=None,
    fit_images=64,
    patch_size=1,
)
RECIPE = TrainConfig(
    seed=0,
    batch_size=8,
    epochs=1,
    optimizer="adamw",
    learning_rate=2e-3,
    muon_learning_rate=0.02,
    weight_decay=0.02,
    beta1=0.9,
    beta2=0.95,
    warmup_epochs=0.0,
    clip_norm=1.0,
    ema_decay=0.9,
    ema_warmup=True,
    label_dropout=0.1,
    mask_ratio_mean=1.0,
    mask_ratio_std=0.25,
    mask_ratio_min=0.7,
    precision="fp32",
    evaluations=2,
    sample_grids=False,
)
MODEL = ModelConfig(
    pretrained=None,
    width=32,
    encoder_depth=1,
    decoder_depth=1,
    heads=2,
    head_width=32,
    head_depth=2,
    head_heads=2,
    head="autoregressive",
    head_group=1,
    buffer_size=2,
    dropout=0.0,
    train=RECIPE,
)
SHAPE = {"grid_height": 4, "grid_width": 4, "dimensions": 4, "levels": 8, "num_classes": 3}  # what tokens decide


# seconds that a test of each tier may take, its fixtures included; the order in which they run. Servers of the tier
# "cluster" need much memory, so they start when those of tests/stack have ended
TIERS = {"pipeline": 900, "cluster": 900, "fast": 120}
SHARING = ("stack", "pipeline")  # folders whose tests share one pipeline; they take longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its time limit, and put the longest tests first."""
    for item in items:
        item.add_marker(pytest.mark.timeout(TIERS[tier_of(item)]))
    items.sort(key=lambda item: ((*SHARING, "").index(shared_folder(item.path)), list(TIERS).index(tier_of(item))))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that share a pipeline, or a file's fixtures, on one worker. `make test-fast` needs no such groups.

    Not ``--dist loadgroup``: xdist 3.8 marks groups in a way that pytest 9.2 ignores.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.partition("::")[0])
            return shared_folder(path) or str(path)

    config.option.loadscopereorder = False  # it would begin with the folders of most tests
    return Together(config, log) if config.getoption("dist") == "loadscope" else None


def shared_folder(path: Path) -> str:
    """The folder of ``SHARING`` that a test's file is in, or nothing."""
    return path.parent.name if path.parent.name in SHARING else ""


def tier_of(item: pytest.Item) -> str:
    return next((tier for tier in TIERS if item.get_closest_marker(tier)), "fast")


class Silent(Discard):
    """A metric sink that keeps the metrics."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.rows.append((step, values))


def small_model(**changes: object) -> TokenBridgeTransformer:
    """A fresh model of ``SHAPE`` and ``MODEL``, with some of the constructor's arguments changed."""
    torch.manual_seed(0)
    return TokenBridgeTransformer(**(SHAPE | sizes_of(MODEL) | changes))


def sizes_of(config: ModelConfig) -> dict[str, object]:
    """What a model's constructor takes of its configuration."""
    return {name: value for name, value in vars(config).items() if name not in NOT_MODEL_ARGUMENTS}


def random_model(**changes: object) -> TokenBridgeTransformer:
    """``small_model`` for use, every weight random, adaLN too."""
    model = small_model(**changes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def model() -> TokenBridgeTransformer:
    return random_model()


@pytest.fixture
def vae_latents() -> torch.Tensor:
    """[64, 4, 4, 4] with unequal locations, scales and smoothness."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(64, 4, 4, 4, generator=generator)
    layout = torch.randn(64, 4, 1, 1, generator=generator)
    smoothness = torch.tensor([0.0, 3.0, 1.0, 0.3])[:, None, None]
    scale = torch.tensor([0.1, 1.0, 5.0, 2.0])[:, None, None]
    return (noise + smoothness * layout) * scale + torch.tensor([1.0, -3.0, 0.0, 10.0])[:, None, None]


@pytest.fixture
def quantizer(vae_latents: torch.Tensor) -> DimensionwiseQuantizer:
    return fit_quantizer(vae_latents, QUANTIZER)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store to copy: creating one takes seconds."""
    from tokenbridge.infra.tracking.store import create_database  # mlflow takes seconds too, and few tests need it

    folder = tmp_path_factory.mktemp("database")
    create_database(folder)
    return folder / "mlflow.db"
