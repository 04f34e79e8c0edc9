"""When images are fetched anew, and when a retrain has nothing to do."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tokenbridge.config import Config
from tokenbridge.data.state import source_state
from tokenbridge.errors import UserError
from tokenbridge.files import sha256_file
from tokenbridge.freshness import is_stale, note_fetched, nothing_new
from tokenbridge.params import PARAMS_FILE, write_params
from tokenbridge.repository import git
from tokenbridge.tracking.recorded import PIPELINE, SOURCE_STATE
from tokenbridge.tracking.spool import Tracker
from tokenbridge.tracking.sync import sync_all

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings of a committed project whose images lie in a folder that DVC does not watch."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / ".gitignore").write_text("/photos/\n/data/\n/.spool/\n/.work/\n/mlflow.db*\n/mlartifacts/\n")
    git(tmp_path, "init", "--quiet")
    for key in ("user.name", "user.email"):
        git(tmp_path, "config", key, "test@example.org")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    photos = tmp_path / "photos/cat"
    photos.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(photos / "1.png")
    return write_params(["data=imagefolder", f"data.root={tmp_path / 'photos'}"], tmp_path)


def state(config: Config) -> str:
    return source_state(config.data, config.storage)


def add_photo(config: Config) -> None:
    assert config.data.root is not None
    Image.new("RGB", (8, 8)).save(Path(config.data.root) / "cat/2.png")


def test_before_the_first_fetch_dvc_decides(tmp_path: Path, config: Config) -> None:
    assert not is_stale(tmp_path, config, state(config))


def test_images_of_an_unknown_or_another_state_are_stale(tmp_path: Path, config: Config) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    assert is_stale(tmp_path, config, state(config))
    note_fetched(tmp_path, state(config))
    assert not is_stale(tmp_path, config, state(config))
    add_photo(config)
    assert is_stale(tmp_path, config, state(config))


def test_files_with_configured_digests_are_dvcs_to_watch(tmp_path: Path, config: Config) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    assert not is_stale(tmp_path, replace(config, data=replace(config.data, source="idx")), "any")


@pytest.mark.slow
def test_only_the_same_source_settings_and_code_make_a_retrain_needless(tmp_path: Path, config: Config) -> None:
    overrides = ["data=imagefolder", f"data.root={config.data.root}"]
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


def test_a_source_that_cannot_be_reached_is_told(tmp_path: Path, config: Config) -> None:
    shutil.rmtree(config.data.root or "")
    with pytest.raises(UserError, match="photos"):
        nothing_new(tmp_path, [])
