"""Detection of changes of a source, without downloading it."""

from tokenbridge.base.files import sha256_json
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.sources.places import list_files, root_of


def source_state(data: DataConfig, storage: StorageConfig) -> str:
    """Return a fingerprint of the source's files. It changes when a file is added, removed, resized or written again.

    For a folder it depends on the names, sizes and times of all files. On S3, ETags take the place of times, and on the
    Hub, digests. For files with a configured SHA-256, it depends only on that. The folder's place and the store's
    address do not count.

    Raises:
        DataError: if data.root is not set or does not exist.
        StorageError: if S3 refuses or does not answer.
    """
    if data.source == "idx":
        state: object = data.sha256
    else:
        roots = [root_of(data)] if data.test_root is None else [root_of(data), data.test_root]
        state = [[(file.name, file.size, file.version) for file in list_files(root, storage)] for root in roots]
    return sha256_json(state)
