"""DVC's experiments in temporary folders, of which nothing but the record stays."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.checkout import CHECKOUT
from tokenbridge.config.params import write_params
from tokenbridge.infra.git import git
from tokenbridge.infra.tracking.store import connect

pytestmark = pytest.mark.pipeline
IGNORED = "/data/*\n/models\n/reports\n/.spool\n/.work\n/mlflow.db*\n/mlartifacts\n__pycache__\n"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A committed project, whose images lie in another folder; the settings that it was committed with."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    root, photos = tmp_path / "project", tmp_path / "photos/cat"
    photos.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(photos / f"{number}.png")
    shutil.copytree(CHECKOUT / "conf", root / "conf")
    shutil.copy(CHECKOUT / "dvc.yaml", root)
    (root / "tokenbridge").symlink_to(CHECKOUT / "tokenbridge")
    (root / ".gitignore").write_text(IGNORED)
    overrides = ["data=imagefolder", "data.num_classes=1", f"data.root={photos.parent}"]
    overrides += ["generate.samples=1", "evaluate.kid_subset_size=1"]
    write_params(overrides, root)
    git(root, "init", "--quiet")
    for key in ("user.name", "user.email"):
        git(root, "config", key, "test@example.org")
    dvc(root, "init", "--quiet")
    dvc(root, "config", "hydra.enabled", "True")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    return overrides


def dvc(root: Path, *arguments: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_experiments_are_recorded_in_the_checkouts_store(tmp_path: Path, settings: list[str]) -> None:
    root = tmp_path / "project"
    for size, where in (("3", "--temp"), ("4", "--queue")):
        changed = [word for override in (*settings, f"data.shard_size={size}") for word in ("-S", override)]
        dvc(root, "exp", "run", where, *changed, "fetch")
    dvc(root, "exp", "run", "--run-all")
    runs = connect(root).client.search_runs(["1"], "tags.stage = 'fetch'", order_by=["attributes.start_time"])
    assert [run.data.params["data.shard_size"] for run in runs] == ["3", "4"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["git.commit"] for run in runs} == {git(root, "rev-parse", "HEAD")}
    assert not (root / "data/images").exists()  # they ran elsewhere
