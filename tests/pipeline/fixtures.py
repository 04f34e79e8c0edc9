"""One clone of this checkout, with a smoke pipeline on real images that has run to its end once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.project import Project
from tests.support.checkout import CHECKOUT
from tokenbridge.base.files import atomic_path
from tokenbridge.infra.dvc import LOCK_FILE

TWO = ("launcher=multi_gpu", "launcher.processes=2", *Project.launching)
CACHE = ".dvc/cache"
TRAIN = ("python", "-m", "tokenbridge.stages", "train@tiny")


def copy_checkout(target: Path) -> None:
    """What a commit would hold, uncommitted work included."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (CHECKOUT / name).exists():  # else deleted, and not yet committed so
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, target / name)


def new_clone(root: Path) -> Project:
    """With the smoke settings, in which nothing has run yet."""
    copy_checkout(root)
    project = Project(root)
    project.run("git", "init", "--quiet")
    project.run("python", "-m", "tokenbridge.cli", "params", *project.overrides)
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "Smoke settings")
    return project


def shared_outs(factory: pytest.TempPathFactory) -> Path | None:
    """Where the clone of tests/pipeline leaves what it made, for tests/stack; None if there is one worker for both."""
    return factory.getbasetemp().parent / "smoke" if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1 else None


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Every test leaves it able to go on: what it changed, the next ``repro`` puts right."""
    project = new_clone(tmp_path_factory.mktemp("clone"))
    project.repro()
    if shared := shared_outs(tmp_path_factory):
        with atomic_path(shared) as target:
            shutil.copytree(project.root / CACHE, target / CACHE)
            shutil.copy2(project.root / LOCK_FILE, target)
    return project


@pytest.fixture(scope="session")
def learnt_by_two(project: Project) -> dict[str, str]:
    """Digests of what an undisturbed training in two processes gives."""
    with project.by_hand(*TWO):
        project.run(*TRAIN)
        return {out: project.digest(out) for out in ("models/tiny/transformer", "reports/train/tiny/loss.csv")}
