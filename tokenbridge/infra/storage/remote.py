"""Set DVC's remote from the settings of conf/storage."""

from pathlib import Path

from tokenbridge.config import StorageConfig
from tokenbridge.infra.dvc import opened
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import SCHEME
from tokenbridge.infra.storage.client import endpoint_of

REMOTE = "storage"  # the remote's name in .dvc/config.local


def set_dvc_remote(root: Path, config: StorageConfig) -> str:
    """Make s3://bucket/prefix DVC's default remote in root/.dvc/config.local, which git ignores. Return the address.

    Raises:
        StorageError: if no bucket is named.
        UserError: if DVC refuses.
    """
    if config.bucket is None:
        raise StorageError("storage.bucket is not set: `tokenbridge remote storage.bucket=<name>`, or in conf/storage")
    url = f"{SCHEME}{config.bucket}/{config.prefix or ''}".rstrip("/")
    remote = {"url": url, "endpointurl": endpoint_of(config), "region": config.region, "profile": config.profile}
    with opened(root) as repo, repo.config.edit("local") as settings:
        settings["remote"][REMOTE] = {key: value for key, value in remote.items() if value is not None}
        settings["core"]["remote"] = REMOTE
    return url
