"""Files by folder or pattern, the same names wherever they lie."""

import os
from pathlib import Path

import pytest

from tokenbridge.config import StorageConfig
from tokenbridge.images import DataError
from tokenbridge.sources.places import list_files, split_pattern


@pytest.mark.parametrize(
    ("location", "base", "pattern"),
    [
        ("/data/shards", "/data/shards", ""),
        ("/data/shards/", "/data/shards", ""),
        ("/data/train-*.tar", "/data", "train-*.tar"),
        ("/data/*/x-[01].tar", "/data", "*/x-[01].tar"),
        ("/data/one.tar", "/data", "one.tar"),
        ("/*.tar", "/", "*.tar"),
        ("*.tar", ".", "*.tar"),
        ("s3://bucket", "s3://bucket", ""),
        ("s3://bucket/a/x-?.tar", "s3://bucket/a", "x-?.tar"),
    ],
)
def test_a_pattern_begins_at_its_first_wildcard(location: str, base: str, pattern: str) -> None:
    assert split_pattern(location) == (base, pattern)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.tar", "b/10.tar", "a.tar", ".hidden/x.tar", "b/.DS_Store", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.tar", "b/10.tar", "b/2.tar", "notes.txt"]),
        ("/*.tar", ["a.tar"]),  # a wildcard stands for no slash
        ("/*/2.tar", ["b/2.tar"]),
        ("/b/2.tar", ["2.tar"]),
        ("/b/?.tar", ["2.tar"]),
    ],
)
def test_files_are_listed_in_the_order_of_their_names(folder: Path, pattern: str, names: list[str]) -> None:
    assert [file.name for file in list_files(f"{folder}{pattern}", StorageConfig())] == names


@pytest.mark.parametrize("name", ["all.tar", "[a] *"])
def test_a_folder_may_be_called_like_a_pattern(folder: Path, name: str) -> None:
    (folder / "b").rename(folder / name)
    assert [file.name for file in list_files(f"{folder}/{name}", StorageConfig())] == ["10.tar", "2.tar"]


def test_a_file_is_read_in_parts(folder: Path) -> None:
    file = list_files(f"{folder}/a.tar", StorageConfig())[0]
    assert (file.size, file.read(2, 3)) == (5, b"tar")


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder: correct data\.root"):
        list_files(f"{tmp_path}/nowhere/*.tar", StorageConfig())
    with pytest.raises(DataError, match=r"~no-such-user names the home of an unknown user"):
        list_files("~no-such-user", StorageConfig())
    with pytest.raises(DataError, match=r"a+ cannot be read \(File name too long\)"):
        list_files(f"{tmp_path}/{'a' * 300}", StorageConfig())


def test_a_file_that_is_gone_or_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").symlink_to("nowhere")
    os.mkfifo(tmp_path / "b.tar")
    for file, message in zip(
        list_files(str(tmp_path), StorageConfig()), ("cannot be read", "is a device"), strict=True
    ):
        with pytest.raises(DataError, match=rf"\.tar {message}"):
            file.read(0, 1)


def test_a_link_to_a_folder_above_is_named(folder: Path) -> None:
    (folder / "b" / "c").mkdir()
    for number in range(2):  # without a check, 2^40 folders
        (folder / "b" / "c" / f"loop{number}").symlink_to(folder / "b")
    with pytest.raises(DataError, match=r"b/c/loop. is a link to a folder that holds it"):
        list_files(str(folder), StorageConfig())


def test_hidden_entries_are_counted_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        list_files(f"{folder}/*.tar", StorageConfig())
    assert capsys.readouterr().out == f"{folder}: 2 hidden files or folders are skipped\n"


def test_names_are_stored_in_one_form(tmp_path: Path) -> None:
    for name in (b"caf\xe9.tar", "cafe\u0301.tar".encode()):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(name)
    files = list_files(f"{tmp_path}/caf*.tar", StorageConfig())
    assert {file.name: file.read(0, 4) for file in files} == {r"caf\xe9.tar": b"caf\xe9", "caf\u00e9.tar": b"cafe"}
