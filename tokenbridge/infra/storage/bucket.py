"""A folder on S3: the objects of a bucket below a prefix."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.client import BROKEN_STREAM, explained, make_client

SCHEME = "s3://"
PAUSES = (1, 2, 4)  # seconds before a broken response is requested again; boto3 itself retries only requests
DIGEST = "sha256"  # key of the digest in the object's metadata, in hexadecimal


def is_plain(path: str) -> bool:
    """Return whether ``path`` is relative, printable, in its shortest form, and stays below its folder."""
    parts = PurePosixPath(path).parts
    return "/".join(parts) == path != "" and ".." not in parts and "\\" not in path and path.isprintable()


@dataclass(frozen=True)
class StoredObject:
    """An object without its content, as S3 lists it."""

    path: str  # relative to the folder
    size: int  # bytes
    etag: str  # changes whenever the content changes


class S3Folder:
    """All objects below s3://bucket/prefix/. Threads may share an instance.

    Raises:
        StorageError: from every method, when S3 refuses or does not answer.
    """

    def __init__(self, uri: str, config: StorageConfig) -> None:
        self.bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
        if not uri.startswith(SCHEME) or not self.bucket:
            raise StorageError(f"{uri!r} is no address on S3: write s3://bucket/prefix")
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.config = config
        self.client = make_client(config)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def address(self, path: str) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}{path}"

    def call(self, operation: str, path: str, **arguments: Any) -> Any:
        """Call an operation of boto3's client on one object."""
        with explained(self.address(path), self.config):
            return getattr(self.client, operation)(Bucket=self.bucket, Key=self.prefix + path, **arguments)

    def list(self) -> list[StoredObject]:
        """Return all objects, sorted by path. Skip the markers of empty folders.

        Raises:
            StorageError: also for a name that cannot be a file's name below a folder.
        """
        with explained(str(self), self.config):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
            items = [item for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]
        items = [(item["Key"].removeprefix(self.prefix), item["Size"], item["ETag"].strip('"')) for item in items]
        for path, _, _ in items:
            if not is_plain(path):
                raise StorageError(f"{self.address(path)!r} is no name of a file: rename or delete the object")
        return [StoredObject(*item) for item in sorted(items)]

    def digest(self, path: str) -> str | None:
        """Return the SHA-256 of an object as its uploader gave it, in hexadecimal. None: the uploader gave none."""
        return self.call("head_object", path)["Metadata"].get(DIGEST)

    def read(self, item: StoredObject, start: int = 0, size: int | None = None) -> bytes:
        """Return bytes start .. start + size - 1, or to the end. Fail if other content has replaced the object."""
        size = item.size - start if size is None else size
        if size == 0:
            return b""
        wanted = {"Range": f"bytes={start}-{start + size - 1}", "IfMatch": f'"{item.etag}"'}
        for pause in PAUSES:
            with suppress(*BROKEN_STREAM):
                return bytes(self.call("get_object", item.path, **wanted)["Body"].read())
            time.sleep(pause)
        with explained(self.address(item.path), self.config):
            return bytes(self.call("get_object", item.path, **wanted)["Body"].read())

    def put(self, path: str, content: bytes) -> None:
        """Store a small object. S3 compares its SHA-256 on arrival."""
        self.call("put_object", path, Body=content, ChecksumAlgorithm="SHA256")

    def delete(self, path: str) -> None:
        """Delete an object. A missing object is no error."""
        self.call("delete_object", path)
