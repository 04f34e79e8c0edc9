"""What goes wrong with S3 is told with its address and remedy, and without the secret."""

import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.services import S3Place, free_ports
from tokenbridge.config import ConfigError, StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import S3Folder
from tokenbridge.infra.storage.client import make_client
from tokenbridge.infra.storage.transfer import upload

Patch = pytest.MonkeyPatch


def read_only(place: S3Place, patch: Patch) -> S3Place:
    patch.setenv("AWS_ACCESS_KEY_ID", place.server.reader.access_key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", place.server.reader.secret_key)
    return place


def wrong_secret(place: S3Place, patch: Patch) -> S3Place:
    patch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    return place


def wrong_key(place: S3Place, patch: Patch) -> S3Place:
    patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    return place


def no_credentials(place: S3Place, patch: Patch) -> S3Place:
    patch.delenv("AWS_ACCESS_KEY_ID")
    patch.delenv("AWS_SECRET_ACCESS_KEY")
    return place


def no_bucket(place: S3Place, _: Patch) -> S3Place:
    return replace(place, bucket="nowhere-to-be-found")


def bad_bucket(place: S3Place, _: Patch) -> S3Place:
    return replace(place, bucket="no bucket?")


def no_server(place: S3Place, _: Patch) -> S3Place:
    return replace(place, config=StorageConfig(endpoint=f"http://127.0.0.1:{free_ports(1)[0]}"))


def no_profile(place: S3Place, _: Patch) -> S3Place:
    return replace(place, config=replace(place.config, profile="colleague"))


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (read_only, r"s3://test-.*: access denied: ask the bucket's owner"),
        (wrong_secret, r"the secret key does not belong to the access key: correct AWS_SECRET_ACCESS_KEY"),
        (wrong_key, r"does not know this access key: set AWS_ACCESS_KEY_ID"),
        (no_credentials, r"no credentials .*set AWS_ACCESS_KEY_ID"),
        (no_bucket, r"s3://nowhere-to-be-found/team/model: there is no such bucket"),
        (bad_bucket, r"no bucket\?/team/model: .*Invalid bucket name"),
        (no_server, r"no answer from http://127\.0\.0\.1:\d+: start it.*correct storage\.endpoint or AWS_ENDPOINT_URL"),
        (no_profile, r"colleague.*storage\.profile or AWS_PROFILE"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_refusal_says_what_to_do(
    place: S3Place, monkeypatch: Patch, tmp_path: Path, change: Callable[[S3Place, Patch], S3Place], message: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"x")
    changed = change(place, monkeypatch)
    with pytest.raises(StorageError, match=f"(?s){message}") as caught:
        upload(tmp_path / "model", changed.uri, changed.config)
    told = str(caught.value)
    assert not [who for who in (place.server.owner, place.server.reader) if who.secret_key in told]
    assert "not-the-secret" not in told
    assert place.folder.list() == [] if change is read_only else True


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


@pytest.mark.parametrize("endpoint", ["localhost:8333", "ftp://host", "http://"])
def test_an_endpoint_is_an_http_address(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"endpoint is .*write http://host:port"):
        StorageConfig(endpoint=endpoint)


def test_an_endpoint_holds_no_credentials() -> None:
    with pytest.raises(ConfigError, match="credentials belong into AWS_ACCESS_KEY_ID") as caught:
        StorageConfig(endpoint="http://me:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_an_endpoint_from_the_environment_that_cannot_be_is_named(monkeypatch: Patch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(StorageError, match=r"nonsense.*correct storage\.endpoint or AWS_ENDPOINT_URL"):
        make_client(StorageConfig())
