"""Record the code of a run with git, and check out other commits beside your files. Imports no MLflow and no torch."""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tokenbridge.base.errors import UserError

GENERATED = ("dvc.lock", "params.yaml")  # runs write these files and record them separately
LARGEST = 10_000_000  # bytes; a larger file that git does not track is data, not code


class RepositoryError(UserError):
    """Git is not installed, a command failed, or a commit is missing."""


@dataclass(frozen=True)
class Changes:
    """How the files differ from the last commit.

    Attributes:
        patch: input for ``git apply``. It includes files that git neither tracks nor ignores.
        left_out: untracked files that are not in the patch, because they are too large to be code.
    """

    patch: bytes
    left_out: list[str]


def git(folder: Path, *arguments: str) -> str:
    """Run a git command and return its output.

    Raises:
        RepositoryError: with git's error message.
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
    """Return tags with the commit and the dirty flag of ``root``, or no tags if git fails.

    Changes to files that the runs write do not count.
    """
    try:
        commit = git(root, "rev-parse", "HEAD")
        changes = git(root, "status", "--porcelain", "--", ".", *_excluded(GENERATED))
    except RepositoryError:
        return {}
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower(), "mlflow.source.git.commit": commit}


def uncommitted(root: Path) -> Changes:
    """Return the changes since the last commit, except in files that the runs write. The index stays as it is."""
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
    """Create or update a worktree of ``commit`` in ``folder``. Changes to tracked files in it are dropped.

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
    """Apply ``Changes.patch`` to a checkout of the same commit. An empty patch changes nothing.

    Raises:
        RepositoryError: if the patch does not apply.
    """
    if patch:
        _git(folder, "apply", "--whitespace=nowarn", "-", given=patch)


def _has(root: Path, commit: str) -> bool:
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except RepositoryError:
        return False
    return True
