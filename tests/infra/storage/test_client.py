"""Errors of S3: the message has the address and the remedy, and no secret."""

import re
import socket
import socketserver
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import S3Place
from tokenbridge.config import ConfigError, StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import S3Folder
from tokenbridge.infra.storage.transfer import upload

SECRET = "not-the-secret"
ENDPOINT = "http://127.0.0.1:9"  # no server listens there


def refusal(place: S3Place, folder: Path) -> str:
    """The message about an upload that fails. It has no secret in it."""
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"x")
    with pytest.raises(StorageError) as caught:
        upload(folder / "model", place.uri, place.config)
    message = str(caught.value)
    assert not [
        key for key in (place.server.owner.secret_key, place.server.reader.secret_key, SECRET) if key in message
    ]
    return message


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": SECRET}, {}, r"secret key .* access key: correct AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "unknown"}, {}, r"does not know this access key: set AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, {}, r"no credentials .*set AWS_ACCESS_KEY_ID"),
        ({}, {"bucket": "nowhere-to-be-found"}, r"s3://nowhere-to-be-found/team/model: there is no such bucket"),
        ({}, {"bucket": "no bucket?"}, r"no bucket\?/team/model: .*Invalid bucket name"),
        (
            {},
            {"config": StorageConfig(endpoint=ENDPOINT)},
            rf"no answer from {ENDPOINT}: start it.*correct storage\.endpoint or AWS_ENDPOINT_URL",
        ),
        ({}, {"config": StorageConfig(profile="colleague")}, r"colleague.*storage\.profile or AWS_PROFILE"),
        (
            {"AWS_ENDPOINT_URL": "nonsense"},
            {"config": StorageConfig()},
            r"nonsense.*correct storage\.endpoint or AWS_ENDPOINT_URL",
        ),
    ],
)
def test_a_refusal_says_what_to_do(
    place: S3Place,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    changes: dict[str, Any],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert re.search(message, refusal(replace(place, **changes), tmp_path), re.DOTALL)


@pytest.mark.cluster
def test_without_the_right_to_write_nothing_is_written(
    place: S3Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.server.reader.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.server.reader.secret_key)
    assert re.match(r"s3://test-.*: access denied: ask the bucket's owner", refusal(place, tmp_path))
    assert place.folder.list() == []


@pytest.mark.cluster
def test_an_object_that_was_replaced_meanwhile_is_not_mixed_with_the_old_one(place: S3Place) -> None:
    place.folder.put("image", b"old")
    listed = place.folder.list()[0]
    place.folder.put("image", b"new")
    with pytest.raises(StorageError, match="image: it was replaced while it was being read"):
        place.folder.read(listed)


class CutOnce(socketserver.BaseRequestHandler):
    """Hands bytes to and fro, and cuts the first connection in the middle of a large answer."""

    target: tuple[str, int]
    cut = 0

    def handle(self) -> None:
        with socket.create_connection(self.target) as server:
            threading.Thread(target=self.forward, args=(self.request, server), daemon=True).start()
            left = 100_000 if CutOnce.cut == 0 else 2**40
            while left > 0 and (content := server.recv(min(left, 65_536))):
                self.request.sendall(content)
                left -= len(content)
            CutOnce.cut += left == 0

    @staticmethod
    def forward(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65_536):
                target.sendall(content)


@pytest.mark.cluster
def test_an_answer_that_breaks_off_is_asked_for_again(place: S3Place) -> None:
    content = bytes(range(256)) * 4000
    place.folder.put("image", content)
    CutOnce.target = ("127.0.0.1", place.server.ports[0])
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), CutOnce) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        through = S3Folder(place.uri, StorageConfig(endpoint=f"http://127.0.0.1:{proxy.server_address[1]}"))
        assert through.read(through.list()[0]) == content
        proxy.shutdown()
    assert CutOnce.cut == 1


@pytest.mark.parametrize("uri", ["http://bucket/x", "bucket", "s3://", "/local/path"])
def test_only_addresses_of_s3_are_taken(uri: str) -> None:
    with pytest.raises(StorageError, match="write s3://bucket/prefix"):
        S3Folder(uri, StorageConfig())


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        *[
            (endpoint, r"endpoint is .*write http://host:port")
            for endpoint in ("localhost:8333", "ftp://host", "http://")
        ],
        ("http://me:hunter2@host", "credentials belong into AWS_ACCESS_KEY_ID"),
    ],
)
def test_an_endpoint_is_an_http_address_without_credentials(endpoint: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        StorageConfig(endpoint=endpoint)
    assert "hunter2" not in str(caught.value)
