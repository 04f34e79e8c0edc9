"""Git: which code a run was made with, and checkouts of other code beside your own files. Free of MLflow and torch."""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tokenbridge.base.errors import UserError

GENERATED = ("dvc.lock", "params.yaml")  # the runs themselves write these, and record them apart
LARGEST = 10_000_000  # bytes of a file that git does not know; a larger one is data, not code


class RepositoryError(UserError):
    """Git cannot do what is asked."""


@dataclass(frozen=True)
class Changes:
    """How the files differ from the last commit.

    Attributes:
        patch: for ``git apply``; files that git does not know and does not ignore are in it.
        left_out: such files that are too large to be code.
    """

    patch: bytes
    left_out: list[str]


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command.

    Raises:
        RepositoryError: with git's own words.
    """
    return _git(folder, *arguments).decode().strip()


def _git(folder: Path, *arguments: str, given: bytes | None = None, index: Path | None = None) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    environment = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    try:
        return subprocess.run(command, input=given, capture_output=True, check=True, env=environment).stdout
    except FileNotFoundError as error:
        raise RepositoryError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise RepositoryError(f"`git {' '.join(arguments)}` failed: {error.stderr.decode().strip()}") from error


def git_tags(root: Path) -> dict[str, str]:
    """Commit and dirty flag of ``root``, what the runs write themselves left out. Empty without git."""
    try:
        commit = git(root, "rev-parse", "HEAD")
        changes = git(root, "status", "--porcelain", "--", ".", *_excluded(GENERATED))
    except RepositoryError:
        return {}
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower(), "mlflow.source.git.commit": commit}


def uncommitted(root: Path) -> Changes:
    """All that differs from the last commit, what the runs write themselves left out. The index stays as it is."""
    unknown = git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    left_out = [name for name in unknown if name and (root / name).lstat().st_size > LARGEST]
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        _git(root, "read-tree", "HEAD", index=index)
        _git(root, "add", "--all", "--", ".", *_excluded((*GENERATED, *left_out)), index=index)
        return Changes(_git(root, "diff", "--cached", "--binary", "HEAD", index=index), left_out)


def _excluded(names: tuple[str, ...]) -> list[str]:
    return [f":(exclude,literal){name}" for name in names]


def checkout(root: Path, folder: Path, commit: str) -> Path:
    """A worktree of ``commit`` in ``folder``, made or brought there; changes of files that it had are dropped.

    Raises:
        RepositoryError: if the commit is neither here nor at the remotes.
    """
    if not _has(root, commit):
        git(root, "fetch", "--all", "--quiet")
    if not _has(root, commit):
        raise RepositoryError(f"no commit {commit} here or at git's remotes: fetch it from where the run was made")
    if folder.exists():
        git(folder, "checkout", "--quiet", "--force", "--detach", commit)
    else:
        git(root, "worktree", "prune")
        git(root, "worktree", "add", "--quiet", "--detach", str(folder), commit)
    return folder


def apply_patch(folder: Path, patch: bytes) -> None:
    """Bring ``Changes.patch`` into a checkout of the same commit; an empty one changes nothing.

    Raises:
        RepositoryError: if it does not fit.
    """
    if patch:
        _git(folder, "apply", "--whitespace=nowarn", "-", given=patch)


def _has(root: Path, commit: str) -> bool:
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except RepositoryError:
        return False
    return True
