"""Record the code of a run with git, and check out other commits beside your files. Imports no MLflow and no torch."""

import os
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tokenbridge.base.environment import cleaned
from tokenbridge.base.errors import UserError

GENERATED = ("dvc.lock", "params.yaml")  # runs write these files and record them separately
LARGEST = 10_000_000  # bytes; a larger file that git does not track is data, not code
SECRETS = (  # names of files that may hold secrets
    *("*.env", ".env.*", ".envrc", ".netrc", ".pgpass", ".pypirc", ".npmrc", ".htpasswd", ".git-credentials"),
    *("credentials", "credentials.*"),
    *("secrets.*", "client_secret*.json", "kaggle.json", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx"),
)
PRIVATE_KEY = b"PRIVATE KEY-----"
STAGED = ("diff-index", "--cached", "-M")  # lists the changes of the index; ignores how a user likes to see them
# what a user's own configuration or an outer git command must not change
NEUTRAL = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.safecrlf": "false",
    "diff.orderFile": os.devnull,
    "status.showUntrackedFiles": "normal",
}


class RepositoryError(UserError):
    """Git is not installed, a command failed, or a commit is missing."""


@dataclass(frozen=True)
class Changes:
    """How the files differ from the last commit.

    Attributes:
        patch: input for ``git apply``. It includes files that git neither tracks nor ignores.
        left_out: new files that are not in the patch, because they are too large to be code or may hold secrets.
    """

    patch: bytes
    left_out: list[str]


def git(folder: Path, *arguments: str) -> str:
    """Run a git command and return its output.

    Raises:
        RepositoryError: with git's error message.
    """
    return os.fsdecode(_git(folder, *arguments)).strip()


def _git(folder: Path, *arguments: str, given: bytes | None = None, index: Path | None = None) -> bytes:
    neutral = [word for name, value in NEUTRAL.items() for word in ("-c", f"{name}={value}")]
    command = ["git", "-C", str(folder), *neutral, *arguments]
    environment = cleaned(os.environ) | {"LC_ALL": "C"} | ({"GIT_INDEX_FILE": str(index)} if index else {})
    try:
        return subprocess.run(command, input=given, capture_output=True, check=True, env=environment).stdout
    except FileNotFoundError as error:
        raise RepositoryError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        if "not a git repository" in said:
            raise RepositoryError(f"{folder} has no history of git, which this needs: clone the project") from error
        raise RepositoryError(f"`git {' '.join(arguments)}` failed: {said}") from error


def git_tags(root: Path) -> dict[str, str]:
    """Return tags with the commit and the dirty flag of ``root``, or no tags if git fails.

    Changes to files that the runs write do not count.
    """
    with suppress(RepositoryError):
        commit = git(root, "rev-parse", "HEAD")
        changes = git(root, "status", "--porcelain", "--", ".", *_excluded(GENERATED))
        return {"git.commit": commit, "git.dirty": str(bool(changes)).lower(), "mlflow.source.git.commit": commit}
    return {}


def uncommitted(root: Path) -> Changes:
    """Return the changes since the last commit, except in files that the runs write. The index stays as it is."""
    unknown = git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    staged = git(root, *STAGED, "--name-only", "--relative", "--diff-filter=A", "-z", "HEAD").split("\0")
    left_out = [name for name in sorted({*unknown, *staged} - {""}) if _stays_private(root / name)]
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        _git(root, "read-tree", "HEAD", index=index)
        _git(root, "add", "--all", "--", ".", *_excluded((*GENERATED, *left_out)), index=index)
        patch = _git(root, *STAGED, "--binary", "HEAD", index=index)
        return Changes(patch, left_out)


def _stays_private(path: Path) -> bool:
    """Return whether a new file is too large to be code, or may hold secrets by its name or content."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.stat().st_size > LARGEST or any(fnmatch(path.name, pattern) for pattern in SECRETS):
        return True
    return PRIVATE_KEY in path.read_bytes()


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
        git(root, "worktree", "repair", str(folder))  # its links are absolute, and the project may have been moved
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
    with suppress(RepositoryError):
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
        return True
    return False
