"""When images are fetched again, and when a retrain has nothing to do."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.support.checkout import CHECKOUT
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import sha256_file
from tokenbridge.config import Config
from tokenbridge.config.params import PARAMS_FILE, write_params
from tokenbridge.images.shards import read_manifest
from tokenbridge.infra.dvc import RAN, SKIPPED
from tokenbridge.infra.git import git
from tokenbridge.infra.tracking.recorded import PIPELINE, SOURCE_STATE
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import connect
from tokenbridge.infra.tracking.sync import sync_all
from tokenbridge.ops.runs.freshness import is_of, is_stale, note_fetched, nothing_new
from tokenbridge.ops.runs.pipeline_run import FETCH, pipeline_run
from tokenbridge.sources.state import source_state

CONF = CHECKOUT / "conf"
SMALL = ("data=imagefolder", "data.num_classes=1", "generate.samples=1", "evaluate.kid_subset_size=1")


@pytest.fixture
def config(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings of a committed project whose images lie in a folder that DVC does not watch."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(CONF, tmp_path / "conf")
    shutil.copy2(empty_database, tmp_path)
    (tmp_path / ".gitignore").write_text("/photos/\n/data/\n/.spool/\n/.work/\n/mlflow.db*\n/mlartifacts/\n")
    git(tmp_path, "init", "--quiet")
    for key in ("user.name", "user.email"):
        git(tmp_path, "config", key, "test@example.org")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    photos = tmp_path / "photos/cat"
    photos.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(photos / "1.png")
    return write_params([*SMALL, f"data.root={tmp_path / 'photos'}"], tmp_path)


def state(config: Config) -> str:
    return source_state(config.data, config.storage)


def add_photo(config: Config) -> None:
    assert config.data.root is not None
    Image.new("RGB", (8, 8)).save(Path(config.data.root) / "cat/2.png")


def test_images_of_an_unknown_or_another_state_are_stale(tmp_path: Path, config: Config) -> None:
    assert not is_stale(tmp_path, config, state(config))  # before the first fetch DVC decides
    (tmp_path / "data/images").mkdir(parents=True)  # restored from somebody's cache
    assert is_stale(tmp_path, config, state(config))
    assert not is_of(tmp_path, config, state(config))
    assert not is_stale(tmp_path, replace(config, data=replace(config.data, source="idx")), "any")  # DVC watches it
    note_fetched(tmp_path, state(config))
    assert not is_stale(tmp_path, config, state(config))
    assert is_of(tmp_path, config, state(config))
    add_photo(config)
    assert is_stale(tmp_path, config, state(config))


def test_images_that_are_gone_are_not_restored_if_the_source_has_changed_since(tmp_path: Path, config: Config) -> None:
    note_fetched(tmp_path, state(config))
    assert not is_stale(tmp_path, config, state(config))  # DVC may bring them back
    add_photo(config)
    assert is_stale(tmp_path, config, state(config))


@pytest.mark.pipeline
def test_new_images_in_the_source_become_a_new_version_of_the_data(tmp_path: Path, config: Config) -> None:
    shutil.copy(CONF.parent / "dvc.yaml", tmp_path)
    (tmp_path / "tokenbridge").symlink_to(CONF.parent / "tokenbridge")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=tmp_path, check=True)
    for number in range(3, 9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(Path(config.data.root or "") / f"cat/{number}.png")

    def fetch() -> tuple[dict[str, str], str]:
        with pipeline_run(tmp_path) as run:
            run.fetch_if_changed(print)
            run.dvc(["repro", FETCH], print)
        return run.outcomes, read_manifest(tmp_path / "data/images")["digest"]

    first, digest = fetch()
    assert first == {FETCH: RAN}
    add_photo(config)
    again, other = fetch()
    assert again == {FETCH: RAN}
    assert other != digest
    assert fetch() == ({FETCH: SKIPPED}, other)
    runs = connect(tmp_path).client.search_runs(["1"], "tags.stage = 'pipeline'")
    states = [run.data.tags[SOURCE_STATE] for run in runs]
    assert len(states) == 3
    assert len(set(states)) == 2


@pytest.mark.pipeline
def test_only_the_same_source_settings_and_code_make_a_retrain_needless(tmp_path: Path, config: Config) -> None:
    overrides = [*SMALL, f"data.root={config.data.root}"]
    assert nothing_new(tmp_path, overrides) is None
    with Tracker.open(PIPELINE, sha256_file(tmp_path / PARAMS_FILE), tmp_path, system_interval=0) as tracker:
        tracker.tags({SOURCE_STATE: state(config)})
    sync_all(tmp_path)
    reason = nothing_new(tmp_path, overrides)
    assert reason is not None
    assert "had the same source, settings and code" in reason
    assert nothing_new(tmp_path, []) == reason  # params.yaml is what the overrides make
    assert nothing_new(tmp_path, [*overrides, "seed=1"]) is None
    add_photo(config)
    assert nothing_new(tmp_path, overrides) is None
    (Path(config.data.root or "") / "cat/2.png").unlink()
    (tmp_path / "new.py").write_text("x = 1\n")  # not committed
    assert nothing_new(tmp_path, overrides) is None
    (tmp_path / "new.py").unlink()
    shutil.rmtree(config.data.root or "")
    with pytest.raises(UserError, match="photos"):
        nothing_new(tmp_path, overrides)
