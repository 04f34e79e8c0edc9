"""Files that are either whole or absent, because they are written aside and then renamed; and digests of files."""

import csv
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenbridge.base.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SCRATCH = ".partial"  # the end of a temporary folder's name, which also starts with a dot
NEXT_TO_NOTHING = 65_536  # bytes free; fewer count as full, as C++ and Rust libraries do not always say why they failed


class DiskFullError(UserError):
    """A file or folder could not be written because the disk is full. The old one in its place is whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"no space is left on the disk of {path.absolute()}. What was saved before is whole: free some space, or "
            "move the folder to a larger disk and leave a link in its place, and repeat; it goes on from there"
        )


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn an error that a full disk causes in the body into a DiskFullError. The body writes ``path`` or below it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(path, error):
            raise
        raise DiskFullError(path) from error


def is_full(path: Path, error: BaseException) -> bool:
    """Return whether a full disk is the reason that ``path``, or a file below it, could not be written."""
    if getattr(error, "errno", None) in NO_SPACE:
        return True
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(there).free < NEXT_TO_NOTHING


def check_target(path: Path) -> None:
    """Check that a file can be written to ``path``. Only a regular file may be replaced.

    Raises:
        UserError: if it is a folder, a device or a pipe, or if its folder is no folder or not writable.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a {'folder' if path.is_dir() else 'device or pipe'}: name a file")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{path} cannot be written: {error.strerror}; name another file") from error
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "you may not write to it" if folder.is_dir() else "it is no folder"
        raise UserError(f"{path} cannot be written into {folder}, because {reason}: name another file")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path near ``path``. On success the file there replaces ``path``, which may be a regular file.

    On an exception the temporary file is removed and ``path`` stays as it was.

    Raises:
        UserError: if ``path`` cannot be written (see ``check_target``).
        DiskFullError: instead of what the body raises when the disk is full.
    """
    check_target(path)
    with _scratch(path) as scratch:
        target = scratch / path.name
        with explain_full_disk(path):
            yield target
        target.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Do the same as ``atomic_path`` for a folder. It replaces everything in ``path``, so never call it with a folder
    that a user may have named: ``new_folder`` is for these.
    """
    with _scratch(path) as scratch:
        target = scratch / path.name
        with explain_full_disk(path):
            yield target
        if path.is_dir() and not path.is_symlink():
            _exchange(target, path, scratch / "replaced")
        else:
            target.replace(path)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``path``, and remove it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=SCRATCH, dir=path.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def clear_scratch(folder: Path) -> None:
    """Remove what killed writers left in a folder. No process may be writing to the folder."""
    for left in folder.glob(f".*{SCRATCH}"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Do the same as ``atomic_folder`` for a folder that must not exist yet.

    Raises:
        UserError: if the folder exists.
    """
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} is there already: remove it, or name another folder")
    with atomic_folder(path) as target:
        yield target


def _exchange(new: Path, old: Path, aside: Path) -> None:
    """Move the old folder aside, because no folder can be renamed over a full one. Move it back if the rename fails."""
    if not new.exists():
        raise FileNotFoundError(f"{new} was not written, so {old} stays as it is")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    with atomic_path(path) as target:
        target.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    atomic_write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a table with a header; a cell is empty where a row lacks the key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as target, target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(path: Path) -> str:
    """Return the digest of a file, or of a folder's relative names and contents."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
