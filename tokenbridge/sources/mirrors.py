"""Fetching of a data set's files from the first mirror that has them, with a check of each SHA-256."""

import asyncio
import gzip
import logging
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

import httpx2

from tokenbridge.base.files import sha256_file
from tokenbridge.base.progress import Progress
from tokenbridge.config import MirrorConfig
from tokenbridge.images import DataError
from tokenbridge.sources.places import local_path

logger = logging.getLogger(__name__)

GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 1 << 18  # bytes
MAX_BYTES = 2**30  # of a file, packed or not
SLOWEST = 1000  # bytes a second
APT_SECONDS = 1800  # for each of its commands; it has no limit of its own for a slow download
NOT_FOUND = 404  # HTTP


class MirrorError(Exception):
    """The failure of one mirror; the next mirror is tried."""


class NotFoundError(MirrorError):
    """A mirror that answers, but does not have the file."""


def fetch_files(name: str, mirrors: Sequence[MirrorConfig], sha256: dict[str, str], folder: Path) -> None:
    """Put the files that ``sha256`` names, decompressed and checked, into ``folder``.

    Raises:
        DataError: if no mirror gives the files; the message has the reason of every mirror, and the remedies.
    """
    failures = []
    for mirror in mirrors:
        if mirror.location is None:
            failures.append(f"{mirror.kind}: no location is set")
            continue
        try:
            with tempfile.TemporaryDirectory() as scratch:
                source = locate(mirror.kind, mirror.location, list(sha256), mirror.timeout, Path(scratch))
                unpack(source, sha256, folder)
        except (MirrorError, OSError) as error:
            failures.append(f"{mirror.kind}: {error}")
            logger.info(f"fetch {name}: {failures[-1]}")
        else:
            place = f"{mirror.kind} {mirror.location}"
            logger.info(f"fetch {name}: from {place}, SHA-256 of {len(sha256)} files correct")
            return
    raise DataError(explain(name, failures, list(sha256)))


def explain(name: str, failures: list[str], files: list[str]) -> str:
    reasons = "".join(f"\n  - {failure}" for failure in failures) or "\n  - data.mirrors is empty"
    return (
        f"no mirror gave the files of {name}:{reasons}\nDo one of the following:\n"
        f"  - get {', '.join(files)} (plain or .gz) in another way and name their folder:\n"
        f"    `tokenbridge params data.root=/path/to/folder`, then repeat\n"
        f"  - on Debian or Ubuntu: `sudo apt-get update`, then repeat\n"
        f"  - check the network and its proxy (http_proxy, https_proxy), then repeat"
    )


def locate(kind: str, location: str, files: list[str], timeout: float, scratch: Path) -> Path:
    """Return the folder that holds the files, plain or .gz. Files that must be downloaded go to ``scratch``."""
    if kind == "folder":
        return local_path(location)
    if kind == "http":
        return download(location, files, timeout, scratch)
    return extract_package(location, files, timeout, scratch)


def unpack(source: Path, sha256: dict[str, str], folder: Path) -> None:
    """Decompress every file into ``folder``, and compare its digest.

    Raises:
        MirrorError: if a file is missing, is damaged or has another digest.
    """
    if not source.is_dir():
        raise MirrorError(f"{source} is not a folder")
    for name, expected in sha256.items():
        packed = find(source, name)
        try:
            decompress(packed, folder / name)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise MirrorError(f"{packed} is truncated or corrupt ({error}): delete it and get it again") from error
        actual = sha256_file(folder / name)
        if actual != expected:
            raise MirrorError(
                f"{packed} has the wrong checksum: SHA-256 {actual}, data.sha256 says {expected}; "
                f"it is corrupt or another version, so delete it and get it again"
            )


def find(source: Path, name: str) -> Path:
    for candidate in (source / name, source / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise MirrorError(f"{source} has neither {name} nor {name}.gz")


def decompress(packed: Path, target: Path) -> None:
    """Decompress a file if its content is gzip. The name does not decide: some servers decompress .gz files.

    Raises:
        MirrorError: if it has more than MAX_BYTES.
    """
    with packed.open("rb") as raw, target.open("wb") as out:
        stream: BufferedIOBase = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP_MAGIC else raw
        while chunk := stream.read(CHUNK):
            out.write(chunk)
            if out.tell() > MAX_BYTES:
                raise MirrorError(f"{packed} holds more than {MAX_BYTES:,} bytes: delete it and get it again")


def download(base: str, files: list[str], timeout: float, scratch: Path) -> Path:
    """Download each file to ``scratch`` as .gz, or plain if the server has no .gz. Return ``scratch``."""
    for name in files:
        try:
            download_file(f"{base.rstrip('/')}/{name}.gz", timeout, scratch / f"{name}.gz")
        except NotFoundError:
            download_file(f"{base.rstrip('/')}/{name}", timeout, scratch / name)
    return scratch


def download_file(url: str, timeout: float, target: Path) -> None:
    """Download ``url`` to ``target``.

    Raises:
        MirrorError: on an error, on a file that is cut short or has more than MAX_BYTES, or if fewer than SLOWEST bytes
            a second come over ``timeout`` seconds.
    """
    try:
        with target.open("wb") as out:
            asyncio.run(receive(url, timeout, out))
    except TimeoutError as error:
        raise MirrorError(
            f"{url}: timed out after {target.stat().st_size:,} bytes: fewer than {SLOWEST:,} bytes a second came over "
            f"{timeout:g} seconds"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise MirrorError(f"{url}: {error}") from error


async def receive(url: str, timeout: float, out: BinaryIO) -> None:
    clock, client = asyncio.get_running_loop(), httpx2.AsyncClient(follow_redirects=True, timeout=None)
    request = client.stream("GET", url, headers={"Accept-Encoding": "identity"})
    async with asyncio.timeout(timeout) as limit, client, request as response:
        if not response.is_success:
            reason = f"{url}: {response.status_code} {response.reason_phrase}"
            raise NotFoundError(reason) if response.status_code == NOT_FOUND else MirrorError(reason)
        length = int(response.headers.get("Content-Length") or 0)
        progress, due = Progress(f"fetch {Path(out.name).name}", length, "bytes"), SLOWEST * timeout
        async for chunk in response.aiter_raw():
            out.write(chunk)
            if out.tell() > MAX_BYTES:
                raise MirrorError(f"{url} has more than {MAX_BYTES:,} bytes")
            if out.tell() >= due:
                due = out.tell() + SLOWEST * timeout
                limit.reschedule(clock.time() + timeout)
            if length:  # else the total is unknown
                progress.advance(len(chunk))


def extract_package(package: str, files: list[str], timeout: float, scratch: Path) -> Path:
    """Download a Debian package and unpack it. Nothing is installed, and root is not needed.

    Raises:
        MirrorError: if the tools, the package or the files in it are missing.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MirrorError(f"{tool} is not installed: this mirror needs Debian or Ubuntu")
    if complaint(apt(timeout, "download", package), scratch):
        # Package lists are missing or old: download new ones to a private folder. If one of several servers does not
        # answer, the package may still come from another server, so only the result of the download counts.
        private = private_state(scratch)
        unreachable = complaint(apt(timeout, *private, "update"), scratch)
        missing = complaint(apt(timeout, *private, "download", package), scratch)
        if missing:
            raise MirrorError(f"{missing} {unreachable}".rstrip())
    archive = next(scratch.glob("*.deb"))
    if damaged := complaint(["dpkg-deb", "-x", archive.name, "unpacked"], scratch):
        raise MirrorError(f"{archive.name}: {damaged}")
    found = sorted((scratch / "unpacked").rglob(f"{files[0]}*"))
    if not found:
        raise MirrorError(f"{archive.name} does not contain {files[0]}")
    return found[0].parent


def apt(timeout: float, *arguments: str) -> list[str]:
    limits = (f"Acquire::http::Timeout={timeout:g}", f"Acquire::https::Timeout={timeout:g}", "Acquire::Retries=0")
    return ["apt-get", "--quiet", *(part for limit in limits for part in ("-o", limit)), *arguments]


def private_state(scratch: Path) -> list[str]:
    """Return apt options for package lists under ``scratch``; neither the system's lists nor root are needed."""
    state, cache = scratch / "apt-state", scratch / "apt-cache"
    (state / "lists" / "partial").mkdir(parents=True)
    cache.mkdir()
    # As root, apt changes to the user _apt, which may not write to the temporary folder.
    settings = (f"Dir::State={state}", f"Dir::Cache={cache}", "APT::Sandbox::User=root", "Acquire::Languages=none")
    return [part for setting in settings for part in ("-o", setting)]


def complaint(command: list[str], folder: Path) -> str:
    """Run a command in ``folder``. Return the first error that it reports, or "" if it succeeds."""
    environment = os.environ | {"LC_ALL": "C"}  # English messages, in any locale
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=APT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"`{command[0]}` took more than {APT_SECONDS} seconds"
    # for apt-get update, a server that it cannot reach is only a warning (W:)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W: Failed to fetch"))]
    return lines[0] if lines else (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
