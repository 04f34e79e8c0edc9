"""Folders to a real server and back: whole or not at all, and nothing sent twice."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.services import S3Place, SmallDisk
from tokenbridge.base.files import sha256_file, sha256_tree
from tokenbridge.infra.storage import StorageError, transfer
from tokenbridge.infra.storage.prefix_manifest import MANIFEST
from tokenbridge.infra.storage.transfer import SETTINGS, download, upload

pytestmark = pytest.mark.cluster
LARGE = SETTINGS.multipart_threshold + 1000  # bytes, sent in two parts


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Small files, in folders, with names that need quoting."""
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / ".metadata").write_bytes(b"")  # hidden, as in a checkpoint, and empty
    for index in range(5):
        (folder / "vae" / f"{index} ü.bin").write_bytes(bytes([index]) * 1000)
    return folder


@pytest.fixture
def large_model(model: Path) -> Path:
    """The small files and one of two parts."""
    (model / "weights.safetensors").write_bytes(np.random.default_rng(0).bytes(LARGE))
    return model


def check_download(place: S3Place, model: Path, back: Path) -> None:
    download(place.uri, back, place.config)
    assert sha256_tree(back) == sha256_tree(model)


def test_a_download_equals_the_upload_and_every_object_has_its_digest(
    place: S3Place, large_model: Path, tmp_path: Path
) -> None:
    upload(large_model, place.uri, place.config)
    check_download(place, large_model, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "model"]
    for file in (file for file in large_model.rglob("*") if file.is_file()):
        key = place.folder.prefix + file.relative_to(large_model).as_posix()
        head = place.server.client.head_object(Bucket=place.bucket, Key=key, ChecksumMode="ENABLED")
        assert head["Metadata"]["sha256"] == sha256_file(file)
        assert head["ChecksumSHA256"]  # the server's own


def test_only_what_changed_is_sent_again(place: S3Place, model: Path, calls: Counter[str]) -> None:
    upload(model, place.uri, place.config)
    calls.clear()
    upload(model, place.uri, place.config)
    assert not {"PutObject", "UploadPart", "DeleteObject"} & set(calls)
    (model / "vae" / "3 ü.bin").write_bytes(b"y" * 1000)
    upload(model, place.uri, place.config)
    assert (calls["PutObject"], calls["UploadPart"]) == (2, 0)  # the file and the manifest


@pytest.mark.parametrize("changed", ["object", "file"])
def test_a_change_meanwhile_is_found_before_the_upload_counts(
    place: S3Place, model: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    real = transfer._transfer

    def disturbed(*arguments: Any) -> None:
        real(*arguments)
        if changed == "object":
            place.folder.put("manifest.json", b"[]")
        else:
            (model / "manifest.json").write_text("[]")

    monkeypatch.setattr(transfer, "_transfer", disturbed)
    with pytest.raises(StorageError, match=f"{model} or {place.uri} changed during the upload"):
        upload(model, place.uri, place.config)
    assert MANIFEST not in [item.path for item in place.folder.list()]


def test_a_folder_without_files_is_no_upload(place: S3Place, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no file"):
        upload(tmp_path, place.uri, place.config)


def test_a_neighbour_with_a_longer_name_is_not_taken_along(place: S3Place, model: Path) -> None:
    upload(model, place.uri + "_2", place.config)
    assert place.folder.list() == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b"[]", f"manifest.json is not what {MANIFEST} says"),
        ("weights.safetensors", bytes(LARGE), f"weights.safetensors is not what {MANIFEST} says"),
        ("vae/2 ü.bin", None, r"vae/2 ü\.bin: it is missing: .*upload it again"),
    ],
    ids=["replaced", "replaced in parts", "missing"],
)
def test_an_object_that_was_replaced_or_deleted_is_named(
    place: S3Place, large_model: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    upload(large_model, place.uri, place.config)
    if content is None:
        place.folder.delete(name)
    else:
        place.folder.put(name, content)
    with pytest.raises(StorageError, match=message):
        download(place.uri, tmp_path / "back", place.config)
    assert not (tmp_path / "back").exists()
    upload(large_model, place.uri, place.config)  # the remedy
    check_download(place, large_model, tmp_path / "back")


def test_a_manifest_cannot_write_outside_of_the_folder(place: S3Place, tmp_path: Path) -> None:
    content = b"evil"
    evil = {"path": "../../evil", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    place.folder.put(MANIFEST, json.dumps({"format": 1, "files": [evil]}).encode())
    with pytest.raises(StorageError, match=r"'\.\./\.\./evil' is no path below a folder"):
        download(place.uri, tmp_path / "deep" / "back", place.config)
    assert not (tmp_path / "deep").exists()


def test_a_download_goes_on_with_files_that_are_right(
    place: S3Place, large_model: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    upload(large_model, place.uri, place.config)
    aside = tmp_path / ".back.download" / "files"
    (aside / "vae").mkdir(parents=True)
    large = (large_model / "weights.safetensors").read_bytes()
    (aside / "weights.safetensors").write_bytes(large)
    (aside / "vae" / "0 ü.bin").write_bytes(b"\xff" * 1000)  # torn: the right size, other bytes
    (aside / "of another upload").write_bytes(b"x")
    calls.clear()
    check_download(place, large_model, tmp_path / "back")
    assert calls["GetObject"] == 1 + 7  # the manifest and the small ones


def test_a_disk_that_is_too_small_is_named(place: S3Place, large_model: Path, small_disk: SmallDisk) -> None:
    upload(large_model, place.uri, place.config)
    small_disk.filler.write_bytes(bytes(12 * 2**20))  # of 16 MiB; the model has more than 8
    with pytest.raises(StorageError, match=r"its disk has .* free some"):
        download(place.uri, small_disk.folder / "back", place.config)
    assert not (small_disk.folder / "back").exists()
    small_disk.free()
    check_download(place, large_model, small_disk.folder / "back")


def test_a_folder_that_is_there_is_left_alone(place: S3Place, model: Path, tmp_path: Path, calls: Counter[str]) -> None:
    upload(model, place.uri, place.config)
    calls.clear()
    download(place.uri, model, place.config)
    assert calls["GetObject"] == 1
    (model / "mine").write_text("notes")
    with pytest.raises(StorageError, match="is there already, with other files"):
        download(place.uri, model, place.config)
    assert (model / "mine").exists()
