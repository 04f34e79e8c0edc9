"""Files that are whole or absent."""

import os
from pathlib import Path

import pytest

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_folder, atomic_path, atomic_write_text, new_folder, sha256_file, sha256_tree


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as target:
        target.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_folder(path) as target:
            target.mkdir()
            (target / name).touch()
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_not_written_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "kept").touch()
    with pytest.raises(FileNotFoundError), atomic_folder(path):
        pass
    assert (path / "kept").exists()


@pytest.mark.parametrize("name", ["folder", "pipe", "link to a folder", "file/below", "n" * 300])
def test_a_file_replaces_only_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/letter").write_text("precious")
    (tmp_path / "link to a folder").symlink_to(tmp_path / "folder")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"name (a|another) file"), atomic_path(tmp_path / name):
        pytest.fail("the work was begun")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_new_folder_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(UserError, match="is there already"), new_folder(tmp_path):
        pass
    assert (tmp_path / "kept").exists()


def test_tree_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("1")
    first = sha256_tree(tmp_path / "a")
    (tmp_path / "a/x").rename(tmp_path / "a/y")
    second = sha256_tree(tmp_path / "a")
    (tmp_path / "a/y").write_text("2")
    assert len({first, second, sha256_tree(tmp_path / "a")}) == 3
    assert sha256_tree(tmp_path / "a/y") == sha256_file(tmp_path / "a/y")
