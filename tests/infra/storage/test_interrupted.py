"""Uploads that are cut off: no one takes them for whole, and the next one sends the files that are missing."""

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.infra.storage.conftest import start_upload
from tests.pipeline.project import wait_for
from tests.support.services import S3Place, S3Server, use_s3
from tokenbridge.base.files import sha256_tree
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.prefix_manifest import MANIFEST, encode, scan
from tokenbridge.infra.storage.transfer import SETTINGS, download, upload

pytestmark = pytest.mark.cluster
FILES = 4


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
    """Files of two parts each."""
    folder = tmp_path / "large"
    folder.mkdir()
    for index in range(FILES):
        content = np.random.default_rng(index).bytes(SETTINGS.multipart_threshold + 1000)
        (folder / f"weights-{index}").write_bytes(content)
    return folder


def stored(place: S3Place) -> set[str]:
    return {item.path for item in place.folder.list()} - {MANIFEST}


def wait_for_files(process: subprocess.Popen[str], place: S3Place) -> None:
    wait_for(lambda: bool(stored(place)) or process.poll() is not None, "first file")
    assert process.poll() is None, process.communicate()[0]


def unfinished(place: S3Place) -> int:
    """How many large files were begun, and neither completed nor given up."""
    return len(place.server.client.list_multipart_uploads(Bucket=place.bucket).get("Uploads", []))


def test_a_killed_upload_is_continued_with_the_missing_files(
    place: S3Place, large: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    place.folder.put(MANIFEST, encode(scan(large)))  # of an upload before, which this one replaces
    process = start_upload(large, place)
    wait_for_files(process, place)
    process.kill()
    process.wait()
    with pytest.raises(StorageError, match="no whole upload"):
        download(place.uri, tmp_path / "back", place.config)
    there = len(stored(place))
    assert 0 < there < FILES
    (large / "weights-0").write_bytes(b"another content")
    calls.clear()
    upload(large, place.uri, place.config)
    assert calls["CreateMultipartUpload"] in (FILES - there, FILES - there - 1)  # -1: the changed one was not there
    download(place.uri, tmp_path / "back", place.config)
    assert sha256_tree(tmp_path / "back") == sha256_tree(large)


def test_ctrl_c_says_how_to_go_on_and_leaves_no_parts(place: S3Place, large: Path) -> None:
    process = start_upload(large, place)
    wait_for_files(process, place)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.splitlines()[-1] == "interrupted: what is done stays done, and the same command goes on there"
    assert 0 < len(stored(place)) < FILES
    assert unfinished(place) == 0


def test_a_server_that_dies_is_told_and_the_upload_goes_on_when_it_is_back(
    fragile: S3Place, large: Path, tmp_path: Path
) -> None:
    process = start_upload(large, fragile)
    wait_for_files(process, fragile)
    fragile.server.stop(kill=True)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"no answer from {fragile.config.endpoint}: start it" in told.splitlines()[-1]
    assert "Traceback" not in told
    fragile.server.start()
    upload(large, fragile.uri, fragile.config)
    download(fragile.uri, tmp_path / "back", fragile.config)
    assert sha256_tree(tmp_path / "back") == sha256_tree(large)
