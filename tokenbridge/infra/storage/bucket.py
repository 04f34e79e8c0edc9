"""A folder on S3: the objects of a bucket below a prefix."""

import base64
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.client import BROKEN_STREAM, explained, make_client
from tokenbridge.infra.storage.paths import is_plain

SCHEME = "s3://"
BODY_ATTEMPTS = 4  # for a response that breaks off; boto3 itself retries only requests
DIGEST = "sha256"  # key of the digest in the object's metadata, in hexadecimal


@dataclass(frozen=True)
class StoredObject:
    """An object without its content, as S3 lists it."""

    path: str  # relative to the folder
    size: int  # bytes
    etag: str  # changes whenever the content changes


@dataclass(frozen=True)
class Head(StoredObject):
    """An object without its content, as S3 describes it on a HEAD request."""

    sha256: str | None  # as the uploader gave it
    checksum: str | None  # SHA-256 that S3 computed, in base64; for a multipart object, of the parts' digests


def checksum_of(content: bytes) -> str:
    """Return the SHA-256 in the form that S3 compares on arrival."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


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

    def where(self, path: str) -> dict[str, str]:
        """Return the arguments with which boto3 identifies an object."""
        return {"Bucket": self.bucket, "Key": self.prefix + path}

    def call(self, operation: str, path: str, **arguments: Any) -> Any:
        """Call an operation of boto3's client on one object."""
        with explained(self.address(path), self.config):
            return getattr(self.client, operation)(**self.where(path), **arguments)

    def list(self) -> list[StoredObject]:
        """Return all objects, sorted by path. Skip the markers of empty folders.

        Raises:
            StorageError: also for a name that cannot be a file's name below a folder.
        """
        found = []
        for item in self.pages("list_objects_v2", "Contents", Prefix=self.prefix):
            path = item["Key"].removeprefix(self.prefix)
            if path.endswith("/") or not path:
                continue
            if not is_plain(path):
                raise StorageError(f"{self.address(path)!r} is no name of a file: rename or delete the object")
            found.append(StoredObject(path, item["Size"], item["ETag"].strip('"')))
        return sorted(found, key=lambda each: each.path)

    def pages(self, operation: str, field: str, **arguments: str) -> Iterator[dict[str, Any]]:
        """Yield the items of a paginated answer."""
        with explained(str(self), self.config):
            for page in self.client.get_paginator(operation).paginate(Bucket=self.bucket, **arguments):
                yield from page.get(field, [])

    def head(self, path: str) -> Head | None:
        """Describe one object. Return None if there is no such object."""
        with explained(self.address(path), self.config):
            try:
                answer = self.client.head_object(**self.where(path), ChecksumMode="ENABLED")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise
        digest = answer["Metadata"].get(DIGEST)
        return Head(path, answer["ContentLength"], answer["ETag"].strip('"'), digest, answer.get("ChecksumSHA256"))

    def read(self, item: StoredObject, start: int = 0, size: int | None = None) -> bytes:
        """Return bytes start .. start + size - 1, or to the end. Fail if other content has replaced the object."""
        size = item.size - start if size is None else size
        if size == 0:
            return b""
        wanted = {"Range": f"bytes={start}-{start + size - 1}", "IfMatch": f'"{item.etag}"'}
        for attempt in range(BODY_ATTEMPTS):
            body = self.call("get_object", item.path, **wanted)["Body"]
            with explained(self.address(item.path), self.config):
                try:
                    return bytes(body.read())
                except BROKEN_STREAM:
                    if attempt == BODY_ATTEMPTS - 1:
                        raise
            time.sleep(2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def put(self, path: str, content: bytes) -> None:
        """Store a whole object. S3 compares its SHA-256 on arrival."""
        digest = hashlib.sha256(content).hexdigest()
        self.call("put_object", path, Body=content, Metadata={DIGEST: digest}, ChecksumSHA256=checksum_of(content))

    def delete(self, path: str) -> None:
        """Delete an object. A missing object is no error."""
        self.call("delete_object", path)
