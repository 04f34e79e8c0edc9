"""Small parts that many tests use, and the order of tests.

Fixtures import torch and our modules themselves: xdist's own process, which runs no test, loads this file too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import settings

from tests.support.patience import PATIENCE
from tokenbridge.base.console import log_to_console
from tokenbridge.base.imports import quick_imports

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbridge.model import TokenBridgeTransformer
    from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

pytest_plugins = [
    "pytester",
    "tests.support.programs",
    "tests.support.services",
    "tests.support.slurm",
    "tests.pipeline.fixtures",
]

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(autouse=True)
def console() -> None:
    log_to_console()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tensors are tiny here, and other processes may be at work; what a test set is not the next one's."""
    import torch

    torch.set_num_threads(1)


# seconds that a test of each tier may take, its fixtures included; the order in which they run. Servers of the tier
# "cluster" need much memory, so they start when those of tests/stack have ended
TIERS = {"pipeline": 3 * PATIENCE, "cluster": 3 * PATIENCE, "fast": PATIENCE}
SHARING = ("stack", "pipeline", "planning")  # folders whose tests share a pipeline, or plans; they take longest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Collect as stages start: every module is imported now, in each worker."""
    with quick_imports():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its time limit, and put the longest tests first."""
    for item in items:
        item.add_marker(pytest.mark.timeout(TIERS[tier_of(item)]))
    items.sort(key=place_in_order)


def place_in_order(item: pytest.Item) -> tuple[int, bool, int]:
    """By folder and tier. In tests/stack, those go first that need neither the common stack nor tests/pipeline's outs.

    So the worker has something to do while tests/pipeline makes its outs on another one.
    """
    folder, uses = shared_folder(item.path), set(getattr(item, "fixturenames", ()))
    later = folder == "stack" and bool(uses & {"stack", "project"})
    return (*SHARING, "").index(folder), later, list(TIERS).index(tier_of(item))


def pytest_xdist_auto_num_workers() -> int:
    """Run three tests at once on two cores, because those that wait for servers leave a core free.

    Three need more memory than a small machine has, so it runs two.
    """
    return 3 if psutil.virtual_memory().total > 12 * 2**30 else 2


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


@pytest.fixture
def model() -> "TokenBridgeTransformer":
    from tests.support.small_model import random_model

    return random_model()


@pytest.fixture
def vae_latents() -> "Tensor":
    """[64, 4, 4, 4] with unequal locations, scales and smoothness."""
    import torch

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(64, 4, 4, 4, generator=generator)
    layout = torch.randn(64, 4, 1, 1, generator=generator)
    smoothness = torch.tensor([0.0, 3.0, 1.0, 0.3])[:, None, None]
    scale = torch.tensor([0.1, 1.0, 5.0, 2.0])[:, None, None]
    return (noise + smoothness * layout) * scale + torch.tensor([1.0, -3.0, 0.0, 10.0])[:, None, None]


@pytest.fixture
def quantizer(vae_latents: "Tensor") -> "DimensionwiseQuantizer":
    from tests.support.small_model import QUANTIZER
    from tokenbridge.tokenizer.fitting import fit_quantizer

    return fit_quantizer(vae_latents, QUANTIZER)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store to copy: creating one takes seconds."""
    from tokenbridge.infra.tracking.store import create_database

    folder = tmp_path_factory.mktemp("database")
    create_database(folder)
    return folder / "mlflow.db"
