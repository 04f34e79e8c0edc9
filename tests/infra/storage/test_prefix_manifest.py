"""The manifest: what a folder holds, and nothing that could be written outside of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenbridge.base.files import sha256_file
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.paths import is_plain
from tokenbridge.infra.storage.prefix_manifest import MANIFEST, Entry, decode, encode, scan

DIGEST = "0" * 64


def test_a_folder_is_told_whole_and_read_back(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "large.bin").write_bytes(b"x" * 1000)
    (tmp_path / "empty").write_bytes(b"")
    entries = scan(tmp_path)
    assert entries == [
        Entry("b/large.bin", 1000, sha256_file(tmp_path / "b" / "large.bin")),
        Entry("empty", 0, sha256_file(tmp_path / "empty")),
    ]
    assert decode(encode(entries), "there") == entries


@pytest.mark.parametrize("path", ["a", "a/b.png", ".hidden", "a b/ü.png", "..a", "a..b"])
def test_ordinary_names_are_taken(path: str) -> None:
    assert is_plain(path)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../a", "a/../b", "/etc/passwd", "//a", "a//b", "./a", "a/", "a\\..\\b", "a\0b", "a\nb"]
)
def test_names_that_leave_the_folder_or_hide_something_are_refused(path: str) -> None:
    assert not is_plain(path)
    with pytest.raises(StorageError, match="no path below a folder"):
        decode(encode([Entry(path, 1, DIGEST)]), "s3://b/m")


def change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"][0].update(changes)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change(size=-1), "no size or digest of a"),
        (change(size="7"), "no size or digest of a"),
        (change(sha256="12"), "no size or digest of a"),
        (change(path=7), "no path below a folder"),
        (change(path=MANIFEST), "no path below a folder"),
        (change(more=1), "s3://b/m is damaged"),
        (change(path="c"), "names a path twice"),
        (change(path="c/d"), "as both file and folder"),
        (lambda manifest: manifest.pop("files"), "s3://b/m is damaged"),
        (lambda manifest: manifest.update(format=9), "has format 9"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(harm: Callable[[dict[str, Any]], None], message: str) -> None:
    manifest = json.loads(encode([Entry("a", 1, DIGEST), Entry("c", 1, DIGEST)]))
    harm(manifest)
    with pytest.raises(StorageError, match=message):
        decode(json.dumps(manifest).encode(), "s3://b/m")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff"])
def test_what_is_no_manifest_is_damaged(content: bytes) -> None:
    with pytest.raises(StorageError, match="s3://b/m is damaged"):
        decode(content, "s3://b/m")


@pytest.mark.parametrize("name", ["a\\b", "line\nbreak", MANIFEST])
def test_a_file_that_could_not_come_back_is_not_sent(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(StorageError, match="cannot be stored under that name"):
        scan(tmp_path)


def test_nothing_is_no_upload(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no file"):
        scan(tmp_path)
    with pytest.raises(StorageError, match="is not a folder"):
        scan(tmp_path / "missing")
