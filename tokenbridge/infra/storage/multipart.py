"""Upload large files in parallel parts, and continue where a killed upload stopped."""

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenbridge.infra.storage.bucket import DIGEST, S3Folder, checksum_of
from tokenbridge.infra.storage.parallel import in_parallel

MEBIBYTE = 2**20
PART_SIZE = 8 * MEBIBYTE  # S3 requires at least 5 MiB
MOST_PARTS = 10_000  # S3's limit


@dataclass(frozen=True)
class Part:
    """A range of a file."""

    number: int  # from 1
    start: int  # bytes
    size: int


def split_file(size: int) -> list[Part]:
    """Return the parts of a file of this size, always the same, so that a rerun finds those of an earlier run."""
    step = max(PART_SIZE, -(-size // MOST_PARTS))
    return [Part(n + 1, start, min(step, size - start)) for n, start in enumerate(range(0, size, step))]


def composite_checksum(checksums: list[str]) -> str:
    """Return what S3 calls the checksum of a multipart object: the digest of the parts' digests, and their number."""
    together = hashlib.sha256(b"".join(map(base64.b64decode, checksums))).digest()
    return f"{base64.b64encode(together).decode()}-{len(checksums)}"


def send_in_parts(folder: S3Folder, path: str, file: Path, sha256: str, advance: Callable[[int], None]) -> str:
    """Store ``file`` as ``path``, and return the checksum that S3 should now have.

    Continue the newest unfinished upload of ``path``. Its parts count only if they equal the file's, byte for byte.

    Args:
        sha256: for the object's metadata. An upload that was begun earlier keeps the digest that it was begun with.
        advance: called with the size of each part that is stored.
    """
    unfinished = unfinished_uploads(folder, path)
    upload = unfinished[-1] if unfinished else begin(folder, path, sha256)
    there = {part["PartNumber"]: part for part in parts_of(folder, path, upload)}

    def send(part: Part) -> tuple[Part, dict[str, Any]]:
        content = read_part(file, part)
        checksum = checksum_of(content)
        proof = {"PartNumber": part.number, "ChecksumSHA256": checksum}
        if is_same(there.get(part.number), content, checksum):
            return part, proof | {"ETag": there[part.number]["ETag"]}
        answer = folder.call("upload_part", path, UploadId=upload, Body=content, **proof)
        return part, proof | {"ETag": answer["ETag"]}

    sent = []
    for part, proof in in_parallel(send, split_file(file.stat().st_size)):
        sent.append(proof)
        advance(part.size)
    sent.sort(key=lambda proof: proof["PartNumber"])
    folder.call("complete_multipart_upload", path, UploadId=upload, MultipartUpload={"Parts": sent})
    return composite_checksum([proof["ChecksumSHA256"] for proof in sent])


def begin(folder: S3Folder, path: str, sha256: str) -> str:
    answer = folder.call("create_multipart_upload", path, Metadata={DIGEST: sha256}, ChecksumAlgorithm="SHA256")
    return str(answer["UploadId"])


def unfinished_uploads(folder: S3Folder, path: str) -> list[str]:
    """Return the ids of the uploads of exactly this path that no one completed, oldest first."""
    key = folder.where(path)["Key"]
    found = [item for item in folder.pages("list_multipart_uploads", "Uploads", Prefix=key) if item["Key"] == key]
    return [item["UploadId"] for item in sorted(found, key=lambda item: item["Initiated"])]


def parts_of(folder: S3Folder, path: str, upload: str) -> list[dict[str, Any]]:
    return list(folder.pages("list_parts", "Parts", Key=folder.where(path)["Key"], UploadId=upload))


def is_same(stored: dict[str, Any] | None, content: bytes, checksum: str) -> bool:
    """Return whether a stored part has this content. On a server that keeps no SHA-256, the part's ETag is its MD5."""
    if stored is None or stored["Size"] != len(content):
        return False
    if "ChecksumSHA256" in stored:
        return bool(stored["ChecksumSHA256"] == checksum)
    return bool(stored["ETag"].strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest())


def read_part(file: Path, part: Part) -> bytes:
    with file.open("rb") as opened:
        return os.pread(opened.fileno(), part.size, part.start)
