"""The manifest: what a folder holds, and nothing that could be written outside of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tokenbridge.base.files import sha256_file
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import is_plain
from tokenbridge.infra.storage.prefix_manifest import MANIFEST, Entry, decode, encode, scan

DIGEST = "0" * 64


def manifest_of(**changes: Any) -> bytes:
    return json.dumps({"format": 1, "files": [{"path": "a", "size": 1, "sha256": DIGEST} | changes]}).encode()


def test_a_folder_is_listed_completely_and_read_back(tmp_path: Path) -> None:
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
def test_ordinary_names_are_accepted(path: str) -> None:
    assert is_plain(path)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../a", "a/../b", "/etc/passwd", "//a", "a//b", "./a", "a/", "a\\..\\b", "a\0b", "a\nb"]
)
def test_names_that_leave_the_folder_or_hide_something_are_refused(path: str) -> None:
    assert not is_plain(path)
    with pytest.raises(StorageError, match="no path below a folder"):
        decode(manifest_of(path=path), "s3://b/m")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (manifest_of(size=-1), r"files\.0\.size: Input should be greater than or equal to 0"),
        (manifest_of(size="7"), r"files\.0\.size: Input should be a valid integer"),
        (manifest_of(sha256="12"), r"files\.0\.sha256: String should match pattern"),
        (manifest_of(path=7), r"files\.0\.path: Input should be a valid string"),
        (manifest_of(path=MANIFEST), "no path below a folder"),
        (manifest_of(more=1), r"files\.0\.more"),
        *[(content, "") for content in (b"", b"[]", b"null", b"{", b"\xff", b'{"format": 1}')],
        (b'{"format": 9, "files": []}', "format"),
    ],
)
def test_a_damaged_manifest_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(StorageError, match=rf"s3://b/m is damaged.*{message}.*: upload the folder again"):
        decode(content, "s3://b/m")


@pytest.mark.parametrize("name", ["a\\b", "line\nbreak", MANIFEST])
def test_a_file_that_could_not_be_downloaded_is_not_sent(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(StorageError, match="cannot be stored under that name"):
        scan(tmp_path)


def test_only_a_folder_is_scanned(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a folder"):
        scan(tmp_path / "missing")


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_whose_content_would_be_left_out_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vae").symlink_to(tmp_path / target)
    with pytest.raises(StorageError, match="vae is a link to a folder, or to nothing"):
        scan(folder)
