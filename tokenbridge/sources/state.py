"""Whether a source is what it was, without downloading it."""

import hashlib
import json

from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.sources.places import list_files


def source_state(data: DataConfig, storage: StorageConfig) -> str:
    """A fingerprint that differs when the source's files do: when one came, went, grew or was written anew.

    Of a folder: the names, sizes and times of all files; on S3: ETags in place of times; of files with a configured
    SHA-256: that alone. Neither the folder's place nor the store's address counts.

    Raises:
        DataError: when data.root is not set, or is not there.
        StorageError: when S3 refuses or does not answer.
    """
    if data.source == "idx":
        state: object = data.sha256
    elif data.root is None:
        raise DataError("data.root is not set: name the folder or prefix of your images")
    else:
        roots = [data.root] if data.test_root is None else [data.root, data.test_root]
        state = [[(file.name, file.size, file.version) for file in list_files(root, storage)] for root in roots]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
