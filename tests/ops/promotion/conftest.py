"""A project whose images are 8 x 8 pixels, with models of random weights and a real MLflow store."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.entities import Run

from tests.evaluation.conftest import Shapes
from tests.evaluation.shards import save_shards
from tests.support.checkout import CHECKOUT
from tests.support.dvc import init_dvc
from tests.support.small_model import QUANTIZER, random_model
from tests.support.small_pipeline import NAMES, build_pipeline
from tokenbridge.classifier.network import ImageClassifier, save_classifier
from tokenbridge.config.model import Trunk
from tokenbridge.config.params import write_params
from tokenbridge.infra.dvc import md5_as_dvc
from tokenbridge.infra.tracking.logged_model import MODEL_MD5
from tokenbridge.infra.tracking.registry import EVALUATION, VETO, Registry, Version
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import Store, connect
from tokenbridge.infra.tracking.sync import sync_all
from tokenbridge.ops.promotion.promote import promote
from tokenbridge.ops.promotion.registration import registered_name
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.fitting import fit_quantizer

SIDE = 8
NAME = registered_name("shapes", "tiny")
SETTINGS = (
    "experiment=paper",
    "data.name=shapes",
    f"data.image_size={SIDE}",
    "vae.block_widths=[8,8]",
    "generate.samples=24",
    "generate.steps=2",
    "generate.grid_per_class=2",
    "evaluate.kid_subset_size=20",
    "evaluate.kid_subsets=2",
    "promotion.resamples=12",
    "promotion.min_resamples=12",
    "promotion.timing_images=2",
    "promotion.timing_rounds=1",
)
OPEN = ("max_fd_increase=1e9", "max_slowdown=1e9", "max_class_accuracy_decrease=1")  # gates that let everything through
OPEN += ("min_class_accuracy=0", "min_precision=0", "min_recall=0")


@dataclass
class Project:
    """A checkout with a registry."""

    root: Path

    @property
    def store(self) -> Store:
        return connect(self.root)

    @property
    def registry(self) -> Registry:
        return Registry(self.store)

    def register(self, pipeline: TokenBridgePipeline) -> Version:
        """The pipeline as a new version."""
        folder = self.root / "elsewhere/tiny"
        shutil.rmtree(folder, ignore_errors=True)
        pipeline.save_pretrained(folder)
        md5 = md5_as_dvc(folder)
        with Tracker.open("register@tiny", md5, self.root, system_interval=0) as tracker:
            tags = {MODEL_MD5: md5, EVALUATION: "none"}
            tracker.version(folder, name=NAME, model="tiny", tags=tags, metrics={}, description="")
        report = sync_all(self.root)
        assert report.problem is None
        return self.registry.version(NAME)

    def promote(self, *changes: str, **options: Any) -> Any:
        gates = [f"promotion.{change}" for change in (*OPEN, *changes)]
        return promote(self.root, "tiny", changes=gates, **options)

    def holders(self) -> dict[str, int]:
        """Alias -> version."""
        found = {alias: self.registry.holder(NAME, alias) for alias in ("champion", "previous")}
        return {alias: version.number for alias, version in found.items() if version}

    def runs(self, stage: str) -> list[Run]:
        store = self.store
        found = store.client.search_runs([store.experiment], f"tags.stage = '{stage}'")
        return list(found)

    def artifacts(self, run: Run) -> set[str]:
        return {item.path for item in self.store.client.list_artifacts(run.info.run_id)}


def noise(count: int) -> Shapes:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
    return pixels, np.arange(count) % len(NAMES)


def small(seed: int, trunk: Trunk = "masked") -> TokenBridgePipeline:
    """A pipeline of random weights; another for every seed."""
    latents = torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    model = random_model(trunk)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return build_pipeline(model, fit_quantizer(latents, QUANTIZER))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a project has before its first model: settings, code, images, a classifier."""
    root = tmp_path_factory.mktemp("files")
    shutil.copy(CHECKOUT / "dvc.yaml", root)
    for folder in ("conf", "tokenbridge"):
        shutil.copytree(CHECKOUT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    init_dvc(root)
    write_params(SETTINGS, root)
    images = {"train": noise(40), "validation": noise(32), "test": noise(20)}
    save_shards(root / "data/images", images, NAMES)
    save_classifier(ImageClassifier(width=4, label_names=NAMES), root / "models/classifier")
    return root


def copied(files: Path, database: Path, root: Path) -> Project:
    shutil.copytree(files, root)
    shutil.copy2(database, root / "mlflow.db")
    return Project(root)


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def project(files: Path, empty_database: Path, tmp_path: Path) -> Project:
    return copied(files, empty_database, tmp_path / "project")


@pytest.fixture(scope="session")
def two_versions(files: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copied(files, empty_database, tmp_path_factory.mktemp("versions") / "project")
    project.register(small(1))
    project.register(small(2))
    return project


@pytest.fixture
def arena(two_versions: Project, local_store: None) -> Project:
    """A project with versions 1 and 2, of which none is the champion; what was measured of them is kept."""
    client = two_versions.store.client
    for alias in two_versions.holders():
        client.delete_registered_model_alias(NAME, alias)
    for version in two_versions.registry.versions(NAME):
        if version.number > 2:
            client.delete_model_version(NAME, str(version.number))
        elif VETO in version.tags:
            client.delete_model_version_tag(NAME, str(version.number), VETO)
    return two_versions
