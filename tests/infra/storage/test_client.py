"""Errors of S3: the message has the address and the remedy, and no secret."""

import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support.services import S3Place
from tokenbridge.config import ConfigError, StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.bucket import S3Folder, StoredObject
from tokenbridge.infra.storage.client import make_client
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


class CutOnce(BaseHTTPRequestHandler):
    """Answer with half of the content, and then with all of it."""

    content = bytes(range(256)) * 4000
    answers: ClassVar = [content[: len(content) // 2], content]

    def do_GET(self) -> None:
        self.send_response(206)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.answers.pop(0))


def test_an_answer_that_breaks_off_is_requested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with HTTPServer(("127.0.0.1", 0), CutOnce) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = S3Folder("s3://bucket/prefix", StorageConfig(endpoint=f"http://127.0.0.1:{server.server_port}"))
        assert folder.read(StoredObject("image", len(CutOnce.content), "etag")) == CutOnce.content
        server.shutdown()
    assert CutOnce.answers == []


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


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_credentials_in_an_endpoint_of_the_environment_are_refused_unseen(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://me:hunter2@host")
    with pytest.raises(StorageError, match=f"{variable} holds a user name") as caught:
        make_client(StorageConfig())
    assert "hunter2" not in str(caught.value)
