"""The manifest of an uploaded folder: paths, sizes and digests, in one object that is written last."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, NonNegativeInt, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tokenbridge.base.files import sha256_file
from tokenbridge.base.threads import in_threads
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import is_plain

MANIFEST = "_manifest.json"  # not manifest.json: folders of images and moments have a file of that name
STRICT = ConfigDict(strict=True, extra="forbid")


def check_path(path: str) -> str:
    if not is_plain(path) or path == MANIFEST:
        raise ValueError(f"{path!r} is no path below a folder")
    return path


@dataclass(frozen=True, config=STRICT)
class Entry:
    """One file. Its path cannot leave the folder that the file is downloaded to."""

    path: Annotated[str, AfterValidator(check_path)]  # relative, with slashes
    size: NonNegativeInt  # bytes
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """All files of an upload, sorted by path."""

    format: Literal[1]
    files: list[Entry]


def scan(folder: Path) -> list[Entry]:
    """Return the files below ``folder``, sorted by path. Empty folders are ignored.

    Raises:
        StorageError: if ``folder`` is not a folder, or has a file that cannot be stored under its name, or a link that
            does not lead to a file.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a folder: name one that holds files")
    for link in (path for path in folder.rglob("*") if path.is_symlink() and not path.is_file()):
        raise StorageError(f"{link} is a link to a folder, or to nothing: put what it should lead to in its place")
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    for path in files:
        if not is_plain(path) or path == MANIFEST:
            raise StorageError(f"{folder / path!r} cannot be stored under that name: rename it")
    digests = in_threads(sha256_file, files.values())
    entries = [Entry(path, files[path].stat().st_size, digest) for path, digest in zip(files, digests, strict=True)]
    return sorted(entries, key=lambda entry: entry.path)


def encode(entries: list[Entry]) -> bytes:
    return (json.dumps(asdict(Manifest(1, entries)), indent=1) + "\n").encode()


def decode(content: bytes, place: str) -> list[Entry]:
    """Return the entries of a manifest.

    Raises:
        StorageError: if the manifest is damaged, has another format, or names a path that leaves the folder.
    """
    try:
        return TypeAdapter(Manifest).validate_json(content).files
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise StorageError(
            f"{place} is damaged, or another version wrote it ({field}: {first['msg']}): upload the folder again, with "
            "this version"
        ) from error
