"""Set DVC's remote from the settings of conf/storage."""

import subprocess
import sys
from pathlib import Path

from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import SCHEME
from tokenbridge.infra.storage.client import endpoint_of

REMOTE = "storage"  # the remote's name in .dvc/config.local


def set_dvc_remote(root: Path, config: StorageConfig) -> str:
    """Make s3://bucket/prefix DVC's default remote in root/.dvc/config.local, which git ignores. Return the address.

    Raises:
        StorageError: if no bucket is named, or DVC refuses.
    """
    if config.bucket is None:
        raise StorageError("storage.bucket is not set: `tokenbridge remote storage.bucket=<name>`, or in conf/storage")
    url = f"{SCHEME}{config.bucket}/{config.prefix or ''}".rstrip("/")
    _dvc(root, "add", "--local", "--force", "--default", REMOTE, url)
    settings = {"endpointurl": endpoint_of(config), "region": config.region, "profile": config.profile}
    for key, value in settings.items():
        if value is not None:
            _dvc(root, "modify", "--local", REMOTE, key, value)
    return url


def _dvc(root: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", "remote", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StorageError(f"dvc remote {arguments[0]}: {done.stderr.strip()}")
