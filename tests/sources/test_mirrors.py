"""Mirrors are tried in order. An accepted file has the right SHA-256. An error names the reasons of all mirrors."""

import gzip
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sources.conftest import sha256_of
from tokenbridge.config import MirrorConfig
from tokenbridge.config.params import compose_config, validate
from tokenbridge.images import DataError
from tokenbridge.sources import mirrors
from tokenbridge.sources.mirrors import MirrorError, fetch_files

FILES = {"images": b"pixels " * 1000, "labels": b"names"}
SHA256 = sha256_of(FILES)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """images.gz and a plain labels."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "images.gz").write_bytes(gzip.compress(FILES["images"]))
    (folder / "labels").write_bytes(FILES["labels"])
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def server(source: Path) -> Iterator[str]:
    """The source folder over HTTP."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(source))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def assert_fetched(out: Path) -> None:
    assert {path.name: path.read_bytes() for path in out.iterdir()} == FILES


def test_a_web_server_gives_plain_and_gz_files(server: str, out: Path) -> None:
    fetch_files("tiny", [MirrorConfig("http", server + "/")], SHA256, out)
    assert_fetched(out)


def test_the_next_mirror_serves_when_the_first_cannot(
    source: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [
        MirrorConfig("folder", None),
        MirrorConfig("folder", str(tmp_path / "no")),
        MirrorConfig("folder", str(source)),
    ]
    fetch_files("tiny", places, SHA256, out)
    assert_fetched(out)
    assert capsys.readouterr().out.splitlines() == [
        f"fetch tiny: folder: {tmp_path}/no is not a folder",
        f"fetch tiny: from folder {source}, SHA-256 of 2 files correct",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels", b"others", rf"/labels has the wrong checksum: SHA-256 \w+, .*{SHA256['labels']}"),
        ("images.gz", gzip.compress(FILES["images"])[:-20], r"/images\.gz is truncated or corrupt .*get it again"),
        ("images.gz", None, r" has neither images nor images\.gz"),
    ],
    ids=["other", "cut", "missing"],
)
def test_a_file_that_is_wrong_is_named(source: Path, out: Path, name: str, content: bytes | None, message: str) -> None:
    (source / name).unlink()
    if content is not None:
        (source / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{source}{message}"):
        fetch_files("tiny", [MirrorConfig("folder", str(source))], SHA256, out)


def test_a_file_missing_on_the_server_gives_its_address(server: str, out: Path, source: Path) -> None:
    (source / "labels").unlink()
    with pytest.raises(DataError, match=rf"http: {server}/labels: 404"):
        fetch_files("tiny", [MirrorConfig("http", server)], SHA256, out)


def test_a_silent_server_is_left_after_the_timeout(out: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match=r"http: .*timed out"):
            fetch_files("tiny", [MirrorConfig("http", address, timeout=0.2)], SHA256, out)


@contextmanager
def answering(answer: bytes, drip: bytes) -> Iterator[str]:
    """A server that gives an answer to everything, and then a few bytes again and again."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(2**16)
            with suppress(OSError):
                self.request.sendall(answer)
                while drip:
                    self.request.sendall(drip)
                    time.sleep(0.01)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "drip", "message"),
    [
        (OK + b"Content-Length: abc\r\n\r\nx", b"", "bad Content-Length"),
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx", b"", "bad Content-Length"),
        (OK + b"Content-Length: 20\r\n\r\nx", b"", "received 1 bytes, expected 20"),
        (OK + b"Content-Length: 20000\r\n\r\n", b"xx", r"timed out after \d+ bytes: fewer than 1,000 bytes a second"),
        (OK + b"\r\n", b"xx", r"timed out after \d+ bytes"),
        (OK + b"X: ", b"xx", "timed out after 0 bytes"),
        (OK + b"\r\n" + b"x" * 5000, b"", "has more than 4,000 bytes"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", b"", "unsupported protocol"),
        (b"\xff\xfe\r\n\r\n", b"", "illegal status line"),
        (b"", b"", "disconnected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_answer_is_left_for_the_next_mirror(
    out: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    drip: bytes,
    message: str,
) -> None:
    monkeypatch.setattr(mirrors, "MAX_BYTES", 4000)
    (source / "images.gz").unlink()
    small = {"labels": SHA256["labels"]}
    with answering(answer, drip) as address:
        fetch_files(
            "tiny", [MirrorConfig("http", address, timeout=0.3), MirrorConfig("folder", str(source))], small, out
        )
    assert re.search(f"fetch tiny: http: {address}/labels.*{message}", capsys.readouterr().out)
    assert (out / "labels").read_bytes() == FILES["labels"]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60).map(lambda end: OK + end) | st.binary(max_size=60))
def test_any_answer_ends_with_its_address(tmp_path: Path, answer: bytes) -> None:
    with answering(answer, b"") as address:
        try:
            mirrors.download_file(address, 1.0, tmp_path / "file")
        except MirrorError as error:
            assert address in str(error)


def test_a_bomb_is_not_unpacked(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "MAX_BYTES", 2**20)
    (source / "images.gz").write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(DataError, match=r"images\.gz holds more than 1,048,576 bytes: delete it"):
        fetch_files("tiny", [MirrorConfig("folder", str(source))], SHA256, out)
    assert (out / "images").stat().st_size <= 2**20 + mirrors.CHUNK


def test_all_reasons_and_remedies_are_named_when_no_mirror_serves(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without apt-get
    places = [
        MirrorConfig("folder", None),
        MirrorConfig("http", "http://127.0.0.1:9", timeout=1),
        MirrorConfig("debian", "dataset-fashion-mnist"),
    ]
    with pytest.raises(DataError) as caught:
        fetch_files("tiny", places, SHA256, out)
    message = str(caught.value)
    for part in (
        "no mirror gave the files of tiny",
        "folder: no location is set",
        "http: http://127.0.0.1:9/images.gz: All connection attempts failed",
        "debian: apt-get is not installed",
        "tokenbridge params data.root=/path/to/folder",
        "sudo apt-get update",
        "images, labels",
    ):
        assert part in message


@pytest.mark.pipeline
def test_debian_gives_fashion_mnist(out: Path) -> None:
    data = validate(compose_config()).data
    debian = [mirror for mirror in data.mirrors if mirror.kind == "debian"]
    fetch_files(data.name, debian, data.sha256, out)
    assert (out / "train-images-idx3-ubyte").stat().st_size == 47_040_016


@pytest.mark.pipeline
def test_debian_without_package_lists_fetches_its_own(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a fresh container: apt's configured state folder is empty, and not ours to write."""
    config = tmp_path / "apt.conf"
    config.write_text(f'Dir::State "{tmp_path / "empty"}";\n')
    monkeypatch.setenv("APT_CONFIG", str(config))
    test_debian_gives_fashion_mnist(out)


@pytest.mark.pipeline
def test_an_unknown_debian_package_is_named(out: Path) -> None:
    with pytest.raises(DataError, match="debian: E: Unable to locate package no-such-package-of-images"):
        fetch_files("tiny", [MirrorConfig("debian", "no-such-package-of-images")], SHA256, out)
