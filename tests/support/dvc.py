"""An empty DVC project."""

from pathlib import Path

from dvc.repo import Repo


def init_dvc(root: Path) -> None:
    """Make ``root`` a DVC project without git. Another process would import for half a second first."""
    Repo.init(str(root), no_scm=True).close()
