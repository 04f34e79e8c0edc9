"""Real servers for tests, on free ports of 127.0.0.1, and a disk that gets full."""

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.pipeline.project import wait_for
from tests.support.programs import require_rights
from tokenbridge.base.files import write_json
from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage.bucket import S3Folder

REGION = "us-east-1"
GRPC_OFFSET = 10_000  # SeaweedFS's own


def free_ports(count: int, beside: int = 0) -> list[int]:
    """Ports that no one listens on, all different.

    Args:
        beside: each port + ``beside`` is free, too; SeaweedFS puts gRPC there.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12_000, 22_000)  # neither it nor its neighbour is one that the system gives away
        if port not in found and all(is_free(each) for each in {port, port + beside}):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Server:
    """A server program that can be killed and started again on the same ports over the same files.

    Its log is ``folder/log``. Subclasses set ``command`` and define ``call``.
    """

    command: list[str | Path]

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.process: subprocess.Popen[bytes] | None = None

    def call(self) -> None:
        """Make a request, which fails until the server is up."""
        raise NotImplementedError

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.folder, env=self.environment, start_new_session=True
            )
        wait_for(self._is_up, "answer of the server")

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        with suppress(OSError, BotoCoreError, ClientError):
            self.call()
            return True
        return False

    def kill(self) -> None:
        """End the server and its processes at once, as when a machine loses power."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Credentials:
    """What one user of the server signs requests with."""

    access_key: str = field(default_factory=lambda: secrets.token_hex(8))
    secret_key: str = field(default_factory=lambda: secrets.token_hex(16))

    def identity(self, name: str, *actions: str) -> dict[str, Any]:
        """The user, as SeaweedFS's settings have it."""
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        return {"name": name, "credentials": [keys], "actions": actions}


class S3Server(Server):
    """SeaweedFS with its data in ``folder``.

    Attributes:
        endpoint: http://127.0.0.1:<port>
        owner: may do everything.
        reader: may list and read, and write nothing.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {"TMPDIR": str(folder)})
        self.owner, self.reader = Credentials(), Credentials()
        names = ["s3", "filer", "master", "volume", "admin"]
        self.ports = free_ports(len(names), beside=GRPC_OFFSET)
        self.endpoint = f"http://127.0.0.1:{self.ports[0]}"
        (folder / "data").mkdir(parents=True)
        owner = self.owner.identity("owner", "Admin", "Read", "Write", "List", "Tagging")
        write_json(folder / "s3.json", {"identities": [owner, self.reader.identity("reader", "Read", "List")]})
        self.command = [
            *(Path(sys.executable).parent / "weed", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{name}.port={port}" for name, port in zip(names, self.ports, strict=True)),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            *("-master.telemetry=false", "-s3.autoCreateBucket=false"),
            "-volume.max=400",  # each bucket takes one, and a small disk would allow few of them
            *(f"-dir={folder / 'data'}", f"-s3.config={folder / 's3.json'}"),
        ]

    @property
    def variables(self) -> dict[str, str]:
        """The variables by which boto3, DVC and MLflow find the server and are let in."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.owner.access_key,
            "AWS_SECRET_ACCESS_KEY": self.owner.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    @cached_property
    def client(self) -> Any:
        """The owner's client of boto3, which gives up soon."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.owner.access_key,
            aws_secret_access_key=self.owner.secret_key,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )

    def call(self) -> None:
        self.client.list_buckets()

    def new_bucket(self) -> str:
        """Name of an empty bucket that no one else uses."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests: each takes its own ``new_bucket()`` and leaves the server running."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass(frozen=True)
class S3Place:
    """An address in an empty bucket, and the settings that lead there."""

    server: S3Server
    bucket: str
    config: StorageConfig

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/team/model"

    @cached_property
    def folder(self) -> S3Folder:
        return S3Folder(self.uri, self.config)

    def fill(self, folder: Path, below: str = "") -> None:
        """Store a folder's files without a manifest; the last by name first."""
        place = self.folder
        for file in sorted((file for file in folder.rglob("*") if file.is_file()), reverse=True):
            place.put(below + file.relative_to(folder).as_posix(), file.read_bytes())


def use_s3(server: S3Server, monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> S3Place:
    """Credentials from the environment alone, whatever this machine's user has, and few attempts."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    files = {name: str(nowhere) for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    for name, value in (server.variables | files).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # the setting leads there
    return S3Place(server, server.new_bucket(), StorageConfig(endpoint=server.endpoint))


@pytest.fixture
def s3_place(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Place:
    return use_s3(s3_server, monkeypatch, tmp_path / "no such file")


class SmallDisk:
    """A file system of its own, of a few megabytes, that a test can fill to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def fill(self) -> None:
        """Take all that is free now; what is freed later stays so."""
        with suppress(OSError), self.filler.open("ab", buffering=0) as file:
            for size in (65_536, 1):
                while file.write(bytes(size)) == size:
                    pass

    def free(self) -> None:
        self.filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    require_rights()
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)  # a stage of this process may hold a file there
