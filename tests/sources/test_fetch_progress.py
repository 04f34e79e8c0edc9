"""An interrupted fetch takes up its whole shards, and no others."""

from pathlib import Path

import pytest

from tokenbridge.base.files import sha256_file
from tokenbridge.sources.fetch_progress import FetchProgress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, both recorded."""
    folder = tmp_path / "images"
    folder.mkdir()
    progress = FetchProgress(folder, "state")
    folder.mkdir(exist_ok=True)
    for name in "ab":
        (folder / name).write_text(name)
        progress.add("train", {"file": name, "count": 1, "sha256": sha256_file(folder / name)}, [], [])
    return folder


def test_a_damaged_or_missing_shard_is_fetched_again(folder: Path) -> None:
    assert FetchProgress(folder, "state").done.keys() == {"a", "b"}
    (folder / "a").write_text("A")
    assert FetchProgress(folder, "state").done.keys() == {"b"}
    (folder / "b").unlink()
    assert FetchProgress(folder, "state").seen == 0


def test_a_shard_that_was_fetched_again_keeps_its_place(folder: Path) -> None:
    """The order of images, and the digest of all, must not depend on what was repaired."""
    (folder / "a").write_text("A")
    progress = FetchProgress(folder, "state")
    progress.add("train", {"file": "a", "count": 1, "sha256": sha256_file(folder / "a")}, [("1.png", 0)], ["2.png"])
    assert [shard["file"] for shard in progress.shards("train")] == ["a", "b"]
    assert (progress.left_out("train"), progress.converted("train")) == ([("1.png", 0)], ["2.png"])


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"state": "state", "shards": {"a": []}}', '{"state": "other", "shards": {}}']
)
def test_damaged_progress_or_another_source_starts_again(folder: Path, damage: str) -> None:
    folder.with_suffix(".json").write_text(damage)
    assert FetchProgress(folder, "state").done == {}
    assert not folder.exists()
