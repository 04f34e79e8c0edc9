"""Uploads that are cut off: nobody takes them for whole, and the next one goes on from what is there."""

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.infra.storage.conftest import start_upload
from tests.pipeline.project import wait_for
from tests.support.services import S3Place, S3Server, use_s3
from tokenbridge.base.files import sha256_tree
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.download import download
from tokenbridge.infra.storage.multipart import PART_SIZE, parts_of, unfinished_uploads
from tokenbridge.infra.storage.prefix_manifest import MANIFEST, encode, scan
from tokenbridge.infra.storage.upload import upload

pytestmark = pytest.mark.cluster
PARTS = 4


@pytest.fixture(scope="module")
def fragile_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One that these tests may kill."""
    server = S3Server(tmp_path_factory.mktemp("fragile"))
    server.start()
    yield server
    server.stop(kill=True)


@pytest.fixture
def fragile(fragile_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Place:
    return use_s3(fragile_server, monkeypatch, tmp_path / "no such file")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "weights").write_bytes(np.random.default_rng(0).bytes(PARTS * PART_SIZE))
    return folder


def stored_parts(place: S3Place) -> list[dict[str, Any]]:
    """Of the upload that is under way."""
    uploads = unfinished_uploads(place.folder, "weights")
    return parts_of(place.folder, "weights", uploads[-1]) if uploads else []


def wait_for_parts(process: subprocess.Popen[str], place: S3Place) -> None:
    wait_for(lambda: len(stored_parts(place)) >= 2 or process.poll() is not None, "second part")
    assert process.poll() is None, process.communicate()[0]


def test_a_killed_upload_goes_on_from_its_parts(
    place: S3Place, large: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    place.folder.put(MANIFEST, encode(scan(large)))  # of an upload before, which this one replaces
    process = start_upload(large, place)
    wait_for_parts(process, place)
    process.kill()
    process.wait()
    with pytest.raises(StorageError, match="no whole upload"):
        download(place.uri, tmp_path / "back", place.config)
    there = len(stored_parts(place))
    calls.clear()
    upload(large, place.uri, place.config)
    assert calls["upload_part"] <= PARTS - there
    assert calls["create_multipart_upload"] == 0
    download(place.uri, tmp_path / "back", place.config)
    assert sha256_tree(tmp_path / "back") == sha256_tree(large)


def test_ctrl_c_says_how_to_go_on(place: S3Place, large: Path) -> None:
    process = start_upload(large, place)
    wait_for_parts(process, place)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.splitlines()[-1] == "interrupted: what is done stays done, and the same command goes on there"
    assert len(stored_parts(place)) >= 2


def test_parts_of_what_the_file_was_before_are_not_used(place: S3Place, large: Path, tmp_path: Path) -> None:
    process = start_upload(large, place)
    wait_for_parts(process, place)
    process.kill()
    process.wait()
    with (large / "weights").open("r+b") as file:
        file.write(b"another start")
    upload(large, place.uri, place.config)
    download(place.uri, tmp_path / "back", place.config)
    assert sha256_tree(tmp_path / "back") == sha256_tree(large)


def test_a_server_that_dies_is_told_and_the_upload_goes_on_when_it_is_back(
    fragile: S3Place, large: Path, tmp_path: Path
) -> None:
    process = start_upload(large, fragile)
    wait_for_parts(process, fragile)
    fragile.server.stop(kill=True)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"no answer from {fragile.config.endpoint}: start it" in told.splitlines()[-1]
    assert "Traceback" not in told
    fragile.server.start()
    upload(large, fragile.uri, fragile.config)
    download(fragile.uri, tmp_path / "back", fragile.config)
    assert sha256_tree(tmp_path / "back") == sha256_tree(large)
