"""Tars of images and labels, local and on S3; and tars that somebody made to do harm."""

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import binary, integers, lists, sampled_from, tuples

from tests.sources.conftest import CLASSES, Make, data_config, encode, picture
from tests.support.services import S3Place
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources import imagefiles, tars
from tokenbridge.sources.fetch import fetch_images
from tokenbridge.sources.places import StoredFile
from tokenbridge.sources.webdataset import index_tar, load_webdataset

Members = list[tuple[str | tarfile.TarInfo, bytes]]


def png(seed: int) -> bytes:
    return encode(picture(seed))


def write_tar(path: Path, members: Members, form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(name, str):
                member.size, member.mtime = len(content), 1.5  # WebDataset's writer gives a fraction, too
            archive.addfile(member, io.BytesIO(content))


def example(index: int) -> Members:
    """An image of class index % 3, labelled in one of the ways there are."""
    label = index % 3
    ways: Members = [
        (f"{index:04d}.cls", str(label).encode()),
        (f"{index:04d}.cls", CLASSES[label].encode() + b"\n"),
        (f"{index:04d}.json", json.dumps({"label": label, "caption": "x"}).encode()),
        (f"{index:04d}.json", json.dumps({"label": CLASSES[label]}).encode()),
    ]
    return [(f"{index:04d}.png", png(index)), ways[index % 4]]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three tars with 10 images each; the classes differ in no more than one image."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        members = [member for index in range(10) for member in example(10 * number + index)]
        write_tar(folder / f"train-{number}.tar", [*members, ("notes.txt", b"other files are passed over")])
    return folder


@pytest.fixture
def config(shards: Path) -> Make:
    return partial(data_config, source="webdataset", label_names=CLASSES, root=str(shards), test_fraction=0.2)


def load(config: DataConfig) -> dict[str, Split]:
    return load_webdataset(config, StorageConfig())[1]


def test_images_are_kept_byte_for_byte_with_their_label(config: Make) -> None:
    splits = load(config())
    assert {split: len(images.labels) for split, images in splits.items()} == {"train": 24, "test": 6}
    assert np.bincount(splits["test"].labels).tolist() == [2, 2, 2]
    for split in splits.values():
        for content, path, label in split.examples():
            index = int(Path(path).stem)
            assert content == png(index)
            assert (label, path) == (index % 3, f"train-{index // 10}/{index:04d}.png")


def test_without_names_classes_are_numbers(shards: Path, config: Make) -> None:
    for file in shards.iterdir():
        file.unlink()
    write_tar(
        shards / "a.tar",
        [member for i in range(24) for member in ((f"{i}.png", png(i)), (f"{i}.cls", b"%d" % (i % 12)))],
    )
    names, _ = load_webdataset(config(label_names=None, num_classes=12), StorageConfig())
    assert names == [str(label) for label in range(12)]


@pytest.mark.parametrize(
    "meanings",
    [
        {b"dog": "dog", b"cat": "cat", b"emu": "emu"},
        {b"1": "0", b"2": "1", b"3": "2"},
        {"cafe\u0301".encode(): "caf\u00e9", b"caf\xe9": r"caf\xe9", b"Z": "Z"},
    ],
    ids=["names", "from 1", "not ASCII"],
)
def test_without_names_they_are_those_of_the_labels(shards: Path, config: Make, meanings: dict[bytes, str]) -> None:
    for file in shards.iterdir():
        file.unlink()
    labels, meant = [*meanings], [*meanings.values()]
    members: Members = [member for i in range(12) for member in ((f"{i}.png", png(i)), (f"{i}.cls", labels[i % 3]))]
    write_tar(shards / "a.tar", members)
    names, splits = load_webdataset(config(label_names=None), StorageConfig())
    assert names == sorted(meant)
    for _, path, label in splits["train"].examples():
        assert names[label] == meant[int(Path(path).stem) % 3]


def test_names_that_are_no_utf8_are_escaped(shards: Path, config: Make) -> None:
    with tarfile.open(shards / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for suffix, content in ((".png", png(0)), (".cls", b"0")):
            member = tarfile.TarInfo("caf\u00e9" + suffix)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert r"x/caf\xe9.png" in {path for split in load(config()).values() for _, path, _ in split.examples()}


def test_a_pattern_names_the_tars_of_each_split(config: Make, shards: Path) -> None:
    splits = load(config(root=f"{shards}/train-[01].tar", test_root=f"{shards}/train-2.tar"))
    assert {split: len(images.labels) for split, images in splits.items()} == {"train": 20, "test": 10}


def test_folders_inside_the_tar_are_part_of_the_key(config: Make, shards: Path) -> None:
    write_tar(shards / "x.tar", [("./a/0.png", png(1)), ("./a/0.cls", b"0"), ("b/0.JPG", png(2)), ("b/0.cls", b"0")])
    assert sum(len(split.labels) for split in load(config()).values()) == 32


@pytest.mark.parametrize(
    "names",
    [
        ["0.v2.png", "0.v2.cls", "1.png", "1.cls", "2.v.3.png", "2.v.3.json"],
        ["0.v2.png", "0.v2.cls", "0.v3.png", "0.v3.cls", "0.v4.png", "0.v4.cls"],  # one key, as WebDataset has it
        ["0.rgb.png", "0.cls", "1.png", "1.label.cls", "2.png", "2.png.cls"],
        ["v1.0/a.png", "v1.0/a.cls", "v1.0/b.png", "v1.0/b.cls", "v2.0/a.png", "v2.0/a.cls"],
    ],
)
def test_images_with_dots_in_their_names_are_kept(config: Make, shards: Path, names: list[str]) -> None:
    contents = [
        png(1) if name.endswith("png") else b'{"label": 0}' if name.endswith("json") else b"0" for name in names
    ]
    write_tar(shards / "x.tar", list(zip(names, contents, strict=True)))
    assert sum(len(split.labels) for split in load(config()).values()) == 33


def test_masks_beside_an_image_are_passed_over_and_counted(
    config: Make, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    masks: Members = [("0.mask.png", png(3)), ("0.edges.png", png(4)), ("0.boxes.json", b"[]")]
    write_tar(shards / "x.tar", [*masks, ("0.png", png(1)), ("0.cls", b"0")])
    assert sum(len(split.labels) for split in load(config()).values()) == 31
    assert "x.tar: 2 images beside their keys' own are not used, such as 0.mask" in caplog.text


@pytest.mark.pipeline
def test_shards_from_s3_are_those_of_a_local_copy(
    config: Make, shards: Path, s3_place: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_place.fill(shards)
    local = fetch_images(config(), tmp_path / "local")
    monkeypatch.setattr(imagefiles, "THREADS", 1)
    for number, root in enumerate((s3_place.uri, f"{s3_place.uri}/train-*.tar")):
        distant = fetch_images(config(root=root), tmp_path / f"distant{number}", storage=s3_place.config)
        assert distant["digest"] == local["digest"]


def special(name: str, kind: bytes, target: str = "") -> Members:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return [(member, b"")]


def gap(size: int) -> bytes:
    """A header that promises ``size`` bytes."""
    member = tarfile.TarInfo("0.png")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def negative() -> bytes:
    """A member of which tarfile would go back to the beginning, and so for ever (CVE-2025-8194)."""
    member = tarfile.TarInfo("0.png")
    member.pax_headers = {"size": "-1024"}
    return member.tobuf(tarfile.PAX_FORMAT)


def pax() -> bytes:
    """A PAX header; tarfile calls itself for each in a row."""
    member = tarfile.TarInfo("pax")
    member.type = tarfile.XHDTYPE
    return member.tobuf(tarfile.GNU_FORMAT)


def long_header() -> bytes:
    """A PAX header of 1 TiB, which tarfile would read into memory."""
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 2**40
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/etc/passwd.png", b"x")], r"/etc/passwd\.png is a name outside of the archive"),
        ([("a/../../b.png", b"x")], r"b\.png is a name outside of the archive"),
        (special("0.png", tarfile.SYMTYPE, "/etc/passwd"), r"0\.png is a link, a device or a sparse file"),
        (special("0.png", tarfile.LNKTYPE, "1.png"), r"0\.png is a link"),
        (special("0.png", tarfile.CHRTYPE), r"0\.png is a link, a device"),
        (special("0.png", tarfile.GNUTYPE_SPARSE), r"sparse file|no tar"),
        ([("0.png", b"x")], r"x\.tar: 0 lacks its image .* or its label"),
        ([("0.cls", b"0")], r"x\.tar: 0 lacks its image"),
        ([("0.png", b"x"), ("0.jpg", b"x")], r"x\.tar: 0\.jpg is a second image of its key"),
        ([("0.a.png", b"x"), ("0.b.png", b"x"), ("0.cls", b"0")], r"x\.tar: 0\.a lacks its image .* or its label"),
        ([("a.1.png", b"x"), ("a.1.cls", b"0"), ("a.2.png", b"x")], r"x\.tar: a\.2 lacks its image .* or its label"),
        ([("0.png", b"x"), ("0.cls", b"0"), ("0.json", b'{"label": 0}')], r"0\.json is a second label of its key"),
        ([("0.png", b"x"), ("0.cls", b"3")], r"x\.tar: 0\.png has the class 3, not one of the 3"),
        ([("0.png", b"x"), ("0.cls", b"-1")], r"0\.png has the class '-1'"),
        ([("0.png", b"x"), ("0.cls", b"Hat")], r"0\.png has the class 'Hat'"),
        ([("0.png", b"x"), ("0.json", b'{"class": 1}')], r"0\.json holds no label"),
        ([("0.png", b"x"), ("0.json", b"[]")], r"0\.json holds no label"),
        ([("0.png", b"x"), ("0.cls", b"\xff")], r"0\.png has the class '\\\\xff'"),
        ([("0.png", b"x"), ("0.cls", b"1" * 5000)], r"0\.png has the class '1111"),
        ([("0.png", b"x"), ("0.cls", b" " * 2**20 + b"0")], r"0\.cls has more than 1,048,576 bytes"),
        ([("0.png", b"x"), ("0.json", b'{"label": null}')], r"0\.json has a label that is None"),
        ([("0.png", b"x"), ("0.json", b'{"label": [1]}')], r"0\.json has a label that is \[1\]"),
        ([("0.png", b"x"), ("0.json", b'{"label": true}')], r"0\.json has a label that is True"),
        ([("0.png", b"x"), ("0.json", b'{"label": 1.5}')], r"0\.json has a label that is 1\.5"),
        ([("0.png", b"x"), ("0.json", b'{"label":' + b"[" * 51 + b"]" * 51 + b"}")], r"0\.json .*more than 50 deep"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_a_bad_tar_is_named_with_what_is_wrong(config: Make, shards: Path, members: Members, message: str) -> None:
    write_tar(shards / "x.tar", members)
    with pytest.raises(DataError, match=message):
        load(config())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda tar: tar[:700], r"x\.tar is not a tar, is compressed, or is cut short"),
        (lambda tar: tar[:1024] + b"\xff" * 512 + tar[1536:], r"x\.tar is damaged, .* at byte 1,024"),
        (lambda tar: tar[:2048], r"x\.tar is cut short at byte 2,048"),
        (lambda tar: tar + tar, r"x\.tar is damaged, or followed by another archive, at byte 2,048"),
        (lambda tar: (pax() * 2000) + tar, r"x\.tar is not a tar"),
        (gzip.compress, r"x\.tar is not a tar, is compressed"),
        (lambda _: b"", r"x\.tar is not a tar"),
        (lambda _: gap(2**40), r"0\.png has 1,099,511,627,776 bytes, which the archive does not hold"),
        (lambda _: negative(), r"0\.png has -1,024 bytes|x\.tar is not a tar"),
        (lambda _: sparse_map(), r"x\.tar is not a tar"),
        (lambda _: long_header(), r"x\.tar has a header that asks for 1099511627776 bytes"),
    ],
    ids=[
        "cut",
        "damaged",
        "without an end",
        "two",
        "chained",
        "compressed",
        "empty",
        "huge member",
        "negative member",
        "sparse map",
        "huge header",
    ],
)
def test_a_damaged_tar_is_refused(config: Make, shards: Path, harm: Callable[[bytes], bytes], message: str) -> None:
    write_tar(shards / "x.tar", [("0.png", b"x"), ("0.cls", b"0")], tarfile.GNU_FORMAT)
    (shards / "x.tar").write_bytes(harm((shards / "x.tar").read_bytes()))
    with pytest.raises(DataError, match=message):
        load(config())


def sparse_map() -> bytes:
    member = tarfile.TarInfo("0.png")
    member.pax_headers = {"GNU.sparse.map": "no numbers", "GNU.sparse.size": "1"}
    return member.tobuf(tarfile.PAX_FORMAT)


def tar_bytes(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in [*example(0), *example(1), ("n" * 99 + ".png", png(2)), ("n" * 99 + ".cls", b"2")]:
            member = tarfile.TarInfo(str(name))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    form=sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    changes=lists(tuples(integers(0, 20), integers(0, 511), binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_any_damage_gives_images_or_an_error_that_names_the_tar(
    form: int, changes: list[tuple[int, int, bytes]]
) -> None:
    content = bytearray(tar_bytes(form))
    for block, position, new in changes:
        start = 512 * block
        content[start + position : start + position + len(new)] = new
        content[start + 148 : start + 156] = b" " * 8  # the header's checksum
        content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    stored = StoredFile("x.tar", "x.tar", len(content), "", lambda start, size: bytes(content[start : start + size]))
    try:
        for image, label in index_tar(stored, CLASSES):
            assert isinstance(label, str | int)
            assert len(image.read(0, image.size)) == image.size
    except DataError as error:
        assert str(error).startswith("x.tar")


def test_too_many_members_are_refused(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBERS", 20)
    with pytest.raises(DataError, match=r"train-0\.tar has more than 20 members"):
        load(config())


def test_an_image_of_too_many_pixels_is_refused(config: Make, shards: Path, tmp_path: Path) -> None:
    """A small file whose header says 225 million."""
    bomb = bytearray(png(0))
    bomb[16:24] = struct.pack(">II", 15_000, 15_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    write_tar(shards / "x.tar", [("0.png", bytes(bomb)), ("0.cls", b"0")])
    with pytest.raises(DataError, match=r"x\.tar: 0\.png has 15000 x 15000 pixels, more than"):
        fetch_images(config(), tmp_path / "images")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_fraction": 0.0}, r"data\.test_root is not set and data\.test_fraction is 0"),
        ({"label_names": [*CLASSES, "Hat"], "num_classes": 4}, r"has no image of Hat"),
        ({"root": "/nowhere/*.tar"}, r"/nowhere is not a folder"),
    ],
)
def test_a_setting_that_disagrees_is_named(config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(config(**changes))


def test_a_place_without_tars_is_named(config: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no \.tar files"):
        load(config(root=f"{tmp_path}/*.none"))
