"""Files that are either whole or absent, because they are written aside and then renamed; and digests of files."""

import csv
import errno
import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tokenbridge.base.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_FLUSH = (errno.EINVAL, errno.ENOTSUP)  # some file systems cannot flush folders
SCRATCH = ".partial"  # the end of a temporary folder's name, which also starts with a dot
MAX_NESTING = 50  # of a JSON file
NEXT_TO_NOTHING = 65_536  # bytes free; fewer count as full, as C++ and Rust libraries do not always say why they failed


class DiskFullError(UserError):
    """A file or folder could not be written because the disk is full. The old one in its place is whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"no space is left on the disk of {path.absolute()}. What was saved before is whole: free some space, or "
            "move the folder to a larger disk and leave a link in its place, and repeat; it goes on from there"
        )


class AccessError(UserError):
    """This user may not change or read a file or folder."""

    def __init__(self, path: Path) -> None:
        there = path.absolute()
        while not os.access(there.parent, os.X_OK) or not there.exists():
            there = there.parent
        try:
            owner = there.owner()
        except (KeyError, NotImplementedError):  # an id without a name, or Windows
            owner = f"user id {there.stat().st_uid}"
        name = shlex.quote(str(there))
        remedy = f'If a command ran as {owner} by mistake, `sudo chown -R "$(id -u)" {name}`'
        if hasattr(os, "geteuid") and there.stat().st_uid == os.geteuid():
            remedy = f"If it should not be protected, `chmod u+rwX {name}`"
        super().__init__(
            f"you may not change or read {path.absolute()}: {there} belongs to {owner}. {remedy}. If the disk is "
            "read-only, use another folder"
        )


def check_access(*paths: Path) -> None:
    """Check that what exists of ``paths`` may be changed.

    Raises:
        AccessError: if not; it names the first one.
    """
    for path in paths:
        if path.exists() and not os.access(path, os.W_OK):
            raise AccessError(path)


@contextmanager
def explain_disk_error(path: Path) -> Iterator[None]:
    """Turn what a full disk causes in the body into a DiskFullError, and a lack of rights into an AccessError.

    Args:
        path: what the body writes, or the folder of it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ACCESS and error.filename:
            raise AccessError(Path(os.fsdecode(error.filename))) from error
        if not is_full(path, error):
            raise
        raise DiskFullError(path) from error


def is_full(path: Path, error: BaseException) -> bool:
    """Return whether a full disk is the reason that ``path``, or a file below it, could not be written."""
    if getattr(error, "errno", None) in NO_SPACE:
        return True
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
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
def atomic_path(path: Path, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path near ``path``. On success the file there replaces ``path``, which may be a regular file.

    On an exception the temporary file is removed and ``path`` stays as it was. Only the owner may read it if it is
    ``private``; others get the permissions of any new file.

    Raises:
        UserError: if ``path`` cannot be written (see ``check_target``).
        DiskFullError: instead of what the body raises when the disk is full.
    """
    check_target(path)
    with _scratch(path) as target:
        yield target
        if private:
            target.chmod(0o600)
        else:
            _take_umask(target)
        publish(target, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Do the same as ``atomic_path`` for a folder. It replaces everything in ``path``, so never call it with a folder
    that a user may have named: ``new_folder`` is for these.
    """
    with _scratch(path) as target:
        yield target
        _take_umask(target)
        publish(target, path, replace_folder=True)


def publish(new: Path, path: Path, *, replace_folder: bool = False) -> None:
    """Rename a file or folder to ``path`` when the disk has all of it, so that a power cut leaves no empty files.

    Args:
        replace_folder: move a folder that is at ``path`` aside, into the folder of ``new``. No folder can be renamed
            over a full one. If the rename fails, the old folder is moved back.
    """
    flush(new, *(each for each in new.rglob("*") if each.is_file() or each.is_dir()))
    if replace_folder and path.is_dir() and not path.is_symlink():
        aside = path.rename(new.with_name(".replaced"))
        try:
            new.rename(path)
        except OSError:
            aside.rename(path)
            raise
    else:
        new.replace(path)
    flush(path.parent)


def flush(*paths: Path) -> None:
    """Return when the disk has the content of these files, and the names in these folders."""
    for path in paths:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        except OSError as error:
            if error.errno not in NO_FLUSH:
                raise
        finally:
            os.close(opened)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Yield a path with the name of ``path`` in a temporary folder beside it. Remove the folder at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=SCRATCH, dir=path.parent))
    try:
        with explain_disk_error(path):
            yield scratch / path.name
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _take_umask(path: Path) -> None:
    """Give a file in a scratch folder, or all those below it, the mode of new files. safetensors makes private ones."""
    new = path.with_name(".new")
    new.touch()
    mode = new.stat().st_mode
    for file in [path, *path.rglob("*")]:
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def clear_scratch(folder: Path, name: str = "*") -> None:
    """Remove what killed writers of ``name``, or of anything, left in a folder. No such writer may be running."""
    for left in folder.glob(f".{name}.*{SCRATCH}"):
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
    """Read a file with ``parse_json``."""
    return parse_json(path.read_bytes())


def parse_json(content: bytes | str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: if it is not JSON in UTF-8, or is nested more than MAX_NESTING deep.
    """
    with suppress(RecursionError):  # json gives up at a depth of about 1,000
        found = json.loads(content)
        level = [found]
        for _ in range(MAX_NESTING + 1):
            nested = [each for each in level if isinstance(each, dict | list)]
            if not nested:
                return found
            level = [item for each in nested for item in (each.values() if isinstance(each, dict) else each)]
    raise ValueError(f"its lists and objects are nested more than {MAX_NESTING} deep")


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Return a digest of what JSON can hold; it stays the same when the content is written and read."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_tree(path: Path) -> str:
    """Return the digest of a file, or of a folder's relative names and contents."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
