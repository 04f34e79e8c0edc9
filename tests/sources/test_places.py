"""Files by folder or pattern, the same names wherever they lie."""

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


def test_a_file_is_read_in_parts(folder: Path) -> None:
    file = list_files(f"{folder}/a.tar", StorageConfig())[0]
    assert (file.size, file.read(2, 3)) == (5, b"tar")


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder: correct data\.root"):
        list_files(f"{tmp_path}/nowhere/*.tar", StorageConfig())


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.tar").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"gone\.tar cannot be read"):
        list_files(str(tmp_path), StorageConfig())
