"""Files that are whole or absent."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import (
    MAX_NESTING,
    AccessError,
    atomic_folder,
    atomic_path,
    atomic_write_text,
    check_access,
    explain_disk_error,
    is_full,
    new_folder,
    parse_json,
    sha256_file,
    sha256_tree,
)


@pytest.mark.parametrize("replaces", [True, False])
def test_the_disk_has_all_of_a_folder_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    place, flushed = tmp_path / "folder", list[tuple[int, bool]]()
    if replaces:
        place.mkdir()
        (place / "old").touch()
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((os.fstat(file).st_ino, (place / "a/b").exists())))
    with atomic_folder(place) as target:
        (target / "a").mkdir(parents=True)
        (target / "a/b").write_text("content")
    parts = {each.stat().st_ino for each in (place, place / "a", place / "a/b")}
    assert {number for number, published in flushed if not published} == parts
    assert flushed[-1] == (tmp_path.stat().st_ino, True)


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


@pytest.mark.parametrize("depth", [MAX_NESTING + 1, 100_000])
def test_json_that_is_nested_too_deep_is_refused(depth: int) -> None:
    assert parse_json("[" * MAX_NESTING + "]" * MAX_NESTING)
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "0" + "}" * depth):
        with pytest.raises(ValueError, match="nested more than 50 deep"):
            parse_json(text)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_of_the_users_other_files(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors and tempfile write files that nobody else may read."""
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "file") as target:
            target.touch(0o600)
        with atomic_folder(tmp_path / "folder") as target:
            (target / "vae").mkdir(parents=True)
            (target / "vae/model.safetensors").touch(0o600)
    finally:
        os.umask(before)
    for name in ("file", "folder/vae/model.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_the_owner_of_a_file_that_may_not_be_changed_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    error = PermissionError(errno.EACCES, "Permission denied", str(folder / "file"))
    told = rf"change or read {folder}/file: {folder} belongs to {folder.owner()}.*"
    with pytest.raises(AccessError, match=rf"{told}`chmod u\+rwX '{folder}'`"), explain_disk_error(folder):
        raise error
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(AccessError, match=rf"{told}`sudo chown -R .* '{folder}'`"), explain_disk_error(folder):
        raise error
    check_access(tmp_path, tmp_path / "missing")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(AccessError, match=f"{tmp_path} belongs to"):
        check_access(tmp_path / "missing", tmp_path)


def test_the_disk_of_a_folder_is_asked_also_if_it_has_no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be where a disk is mounted, and a service may run in the root folder."""
    asked: list[Path] = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=0))
    assert is_full(Path("/"), ValueError())
    assert is_full(Path("/dev/missing"), ValueError())
    assert asked == [Path("/"), Path("/dev")]
