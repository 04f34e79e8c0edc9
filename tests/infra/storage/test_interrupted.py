"""Interrupted uploads: they do not count as whole, and the next upload sends the files that are missing."""

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.infra.storage.conftest import start_upload
from tests.pipeline.project import wait_for
from tests.support.patience import PATIENCE
from tests.support.services import S3Place, S3Server, use_s3
from tokenbridge.base.files import sha256_tree
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.prefix_manifest import MANIFEST, encode, scan
from tokenbridge.infra.storage.transfer import SETTINGS, download, upload

pytestmark = pytest.mark.cluster
FILES = 4


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Place]:
    """A place on a server that a test may kill."""
    server = S3Server(tmp_path / "fragile")
    server.start()
    yield use_s3(server, monkeypatch, tmp_path / "no such file")
    server.kill()


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


def start_and_wait(folder: Path, place: S3Place) -> subprocess.Popen[str]:
    """An upload that has stored its first file."""
    process = start_upload(folder, place)
    wait_for(lambda: bool(stored(place)) or process.poll() is not None, "first file")
    assert process.poll() is None, process.communicate()[0]
    return process


def last_line(process: subprocess.Popen[str]) -> str:
    """The message of a command that fails."""
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode in (1, 128 + signal.SIGINT)
    assert "Traceback" not in output
    return output.splitlines()[-1]


def check_round_trip(place: S3Place, folder: Path, back: Path) -> None:
    upload(folder, place.uri, place.config)
    download(place.uri, back, place.config)
    assert sha256_tree(back) == sha256_tree(folder)


def test_a_killed_upload_is_continued_with_the_missing_files(
    place: S3Place, large: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    place.folder.put(MANIFEST, encode(scan(large)))  # of an earlier upload, which this one replaces
    process = start_and_wait(large, place)
    process.kill()
    process.wait()
    with pytest.raises(StorageError, match=f"has no {MANIFEST}, so it is no whole upload"):
        download(place.uri, tmp_path / "back", place.config)
    assert not (tmp_path / "back").exists()
    there = len(stored(place))
    assert 0 < there < FILES
    (large / "weights-0").write_bytes(b"another content")
    calls.clear()
    check_round_trip(place, large, tmp_path / "back")
    assert calls["CreateMultipartUpload"] in (FILES - there, FILES - there - 1)  # -1: the changed one was not there


def test_ctrl_c_says_how_to_go_on_and_leaves_no_parts(place: S3Place, large: Path) -> None:
    process = start_and_wait(large, place)
    process.send_signal(signal.SIGINT)
    assert last_line(process) == "storage: ended by SIGINT: what is done stays done; repeat the command to go on"
    assert 0 < len(stored(place)) < FILES
    assert not place.server.client.list_multipart_uploads(Bucket=place.bucket).get("Uploads")


def test_a_server_that_dies_is_reported_and_the_upload_goes_on_when_it_is_back(
    fragile: S3Place, large: Path, tmp_path: Path
) -> None:
    process = start_and_wait(large, fragile)
    fragile.server.kill()
    assert f"no answer from {fragile.config.endpoint}: start it" in last_line(process)
    fragile.server.start()
    check_round_trip(fragile, large, tmp_path / "back")
