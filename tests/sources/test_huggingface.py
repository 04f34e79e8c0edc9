"""Data sets in the Hub's layout: what `datasets` writes, in a folder and by the Hub's own protocol."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sources.conftest import Make, data_config
from tests.sources.hub_server import COMMIT, HubServer
from tests.support.photographs import NAMES, WNIDS, Photographs, write_parquet
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.config.data import HubConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.fetch import fetch_images
from tokenbridge.sources.huggingface import belongs, load_huggingface
from tokenbridge.sources.state import source_state

ADDRESS = "hf://datasets/owner/name"


@pytest.fixture(scope="module")
def layout(photos: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    write_parquet(photos, root)
    (root / "README.md").write_text("a card")
    return root


@pytest.fixture
def config(layout: Path) -> Make:
    return partial(data_config, source="huggingface", num_classes=len(NAMES), root=str(layout))


def load(config: DataConfig) -> dict[str, Split]:
    return load_huggingface(config, StorageConfig())[1]


def test_images_are_kept_in_the_order_of_the_rows(config: Make, photos: Photographs) -> None:
    names, splits = load_huggingface(config(), StorageConfig())
    assert names == NAMES
    flat = [(content, WNIDS.index(wnid)) for wnid, files in photos.train.items() for content in files.values()]
    train = list(splits["train"].examples())
    assert [(content, label) for content, _, label in train] == [*flat[0::2], *flat[1::2]]  # of the two files
    assert len({path for _, path, _ in train}) == len(train)
    assert train[0][1] == f"train/00000000-{WNIDS[0]}_0.JPEG"
    assert [label for *_, label in splits["test"].examples()] == [WNIDS.index(wnid) for wnid, _ in photos.validation]


def test_any_ascending_rows_can_be_asked_for(config: Make) -> None:
    train = load(config())["train"]
    everything = list(train.examples())
    rows = np.array([0, 19, 20, 35, 36, 71])  # across row groups of 20, and both files
    assert list(train.examples(rows)) == [everything[row] for row in rows]


def test_names_can_be_given(config: Make) -> None:
    other = [name.upper() for name in NAMES]
    assert load_huggingface(config(label_names=other), StorageConfig())[0] == other


def test_without_a_test_split_a_share_of_each_class_is_set_aside(config: Make) -> None:
    splits = load(config(hub=HubConfig(test=None), test_fraction=0.3))
    assert np.bincount(splits["test"].labels).tolist() == [2] * len(NAMES)
    assert np.bincount(splits["train"].labels).tolist() == [4] * len(NAMES)
    paths = {split: {path for _, path, _ in images.examples()} for split, images in splits.items()}
    assert not paths["train"] & paths["test"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data/train-00000-of-00294.parquet", True),
        ("data/train-00000-of-00001-0123abcd.parquet", True),
        ("plain_text/train/0000.parquet", True),
        ("train.parquet", True),
        ("data/training-00000-of-00001.parquet", False),
        ("data/validation-00000-of-00014.parquet", False),
    ],
)
def test_a_file_tells_its_split_by_its_name(name: str, expected: bool) -> None:
    assert belongs(name, "train") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub": HubConfig(test="test")}, r"has no \.parquet files of split 'test' \(found: data/train-00000"),
        ({"hub": HubConfig(image="img")}, r"has the columns image, label, not img: correct data\.hub\.image"),
        ({"num_classes": 5}, r"names 12 classes but data\.num_classes is 5"),
        (
            {"hub": HubConfig(validation="train")},
            r"data\.hub\.train, test and validation are train, validation, train: name",
        ),
        ({"hub": HubConfig(test=None)}, r"data\.hub\.test is null and data\.test_fraction is 0"),
    ],
)
def test_a_setting_that_disagrees_is_named(config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(config(**changes))


def test_a_row_without_an_image_is_a_broken_one(config: Make, tmp_path: Path) -> None:
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([None] * len(NAMES), cell), "label": list(range(len(NAMES)))})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    for content, _, _ in load(config(root=str(tmp_path)))["train"].examples():
        assert "is not an image" in str(content)


def test_a_damaged_file_and_a_column_without_bytes_are_named(config: Make, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train\.parquet is missing or damaged"):
        load(config(root=str(tmp_path)))
    table = pa.table({"image": ["a.jpg"] * 12, "label": list(range(12))})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match=r"train\.parquet, row 0 holds no encoded image"):
        list(load(config(root=str(tmp_path)))["train"].examples())


def write_labels(root: Path, train: pa.Array, validation: pa.Array | None = None, **metadata: str) -> Path:
    """The files of both splits with these labels, and images that are not looked at. Their paths are in Latin-1."""
    for split, labels in (("train", train), ("validation", train if validation is None else validation)):
        paths = pa.array([b"caf\xe9.png"] * len(labels)).cast(pa.string(), safe=False).view(pa.string())
        images = pa.StructArray.from_arrays([pa.array([b"x"] * len(labels)), paths], ["bytes", "path"])
        schema = pa.schema([("image", images.type), ("label", labels.type)], metadata=metadata)
        pq.write_table(pa.table({"image": images, "label": labels}, schema=schema), root / f"{split}.parquet")
    return root


PETS = pa.array(["dog", "cat", "dog", "cat"])
STRUCT = pa.array([{"a": 0}, {"a": 1}])


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (PETS, ["cat", "dog"], [1, 0, 1, 0]),
        (PETS.dictionary_encode(), ["cat", "dog"], [1, 0, 1, 0]),
        (PETS.cast(pa.large_string()), ["cat", "dog"], [1, 0, 1, 0]),
        (pa.array([b"caf\xe9", "cafe\u0301".encode()]), [r"caf\xe9", "caf\u00e9"], [0, 1]),
        (pa.array([True, False]), ["0", "1"], [1, 0]),
        (pa.array([1.0, 0.0]), ["0", "1"], [1, 0]),
        (pa.array([2, 1], pa.uint8()), ["0", "1"], [1, 0]),
        (pa.array([0, 1]).dictionary_encode(), ["0", "1"], [0, 1]),
    ],
    ids=["names", "encoded", "large", "not ASCII", "truth", "whole", "from 1", "encoded numbers"],
)
def test_labels_of_every_kind_become_classes(
    config: Make, tmp_path: Path, labels: pa.Array, names: list[str], indices: list[int]
) -> None:
    found, splits = load_huggingface(config(root=str(write_labels(tmp_path, labels)), num_classes=2), StorageConfig())
    assert found == names
    assert splits["train"].labels.tolist() == splits["test"].labels.tolist() == indices
    assert {path for _, path in splits["train"].encode([0])} == {r"train/00000000-caf\xe9.png"}


def test_labels_from_1_are_reported(config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(config(root=str(write_labels(tmp_path, pa.array([1, 2]))), num_classes=2))
    assert "has the labels 1 to 2: they become 0 to 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (pa.array([0, 1, None]), None, r"train\.parquet, row 2 has a label that is null"),
        (pa.array(["a", None]), None, r"train\.parquet, row 1 has a label that is null"),
        (pa.nulls(2), None, r"row 0 has a label that is null"),
        (pa.array([[0], [1]]), None, r"row 0 has a label that is of the type list"),
        (STRUCT, None, r"row 0 has a label that is of the type struct"),
        (pa.array([0, 1.5]), None, r"row 1 has a label that is 1\.5"),
        (pa.array([0, float("inf")]), None, r"row 1 has a label that is inf"),
        (pa.array([0, 1]), pa.array([-1, -1]), r"split 'validation' has the labels -1 \(1 of them\)"),
        (PETS, pa.array(["cat", "emu"]), r"split 'validation' has the labels cat, emu \(2 of them\)"),
        (pa.array(["a", "b", "c"]), None, r"split 'train' of .* has 3 labels \(a, b, c\), but data\.num_classes is 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_label_is_refused_with_its_row(
    config: Make, tmp_path: Path, train: pa.Array, validation: pa.Array | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(config(root=str(write_labels(tmp_path, train, validation)), num_classes=2))


@pytest.mark.parametrize("features", ["{", "[]", '{"info": {"features": {"label": {"names": [1, 2]}}}}', "[" * 10**5])
def test_damaged_features_are_named(config: Make, tmp_path: Path, features: str) -> None:
    write_labels(tmp_path, pa.array([0, 1]), huggingface=features)
    with pytest.raises(DataError, match=r"train\.parquet has damaged features .* or set data\.label_names"):
        load(config(root=str(tmp_path), num_classes=2))


def test_a_later_file_without_the_column_is_named(config: Make, tmp_path: Path) -> None:
    write_labels(tmp_path, pa.array([0, 1]))
    pq.write_table(pa.table({"other": [0]}), tmp_path / "train_1.parquet")
    with pytest.raises(DataError, match=r"train_1\.parquet is missing or damaged .*label"):
        load(config(root=str(tmp_path), num_classes=2))


# ---- by the Hub's protocol


@pytest.fixture
def hub(layout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The layout, gated: the token is "secret"."""
    server = HubServer(layout, token="secret")
    constants = "huggingface_hub.constants"  # made of HF_ENDPOINT when it is imported
    monkeypatch.setattr(f"{constants}.ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield server
    server.shutdown()
    server.server_close()


def test_the_hub_gives_the_same_shards_as_a_local_copy(hub: HubServer, config: Make, tmp_path: Path) -> None:
    local = fetch_images(config(), tmp_path / "local")
    for number, address in enumerate((ADDRESS, f"{ADDRESS}@{COMMIT}", f"{ADDRESS}/data")):
        assert fetch_images(config(root=address), tmp_path / f"hub{number}")["digest"] == local["digest"]


def test_images_are_streamed_by_row_groups(hub: HubServer, config: Make, layout: Path) -> None:
    train = load(config(root=ADDRESS))["train"]
    hub.ranges.clear()
    next(train.examples(np.array([70])))
    asked = sum(int(end) - int(start) + 1 for start, end in (each[6:].split("-") for each in hub.ranges))
    sizes = [path.stat().st_size for path in (layout / "data").glob("train-*")]
    assert asked < max(sizes)


def test_a_gated_data_set_says_how_to_be_let_in(hub: HubServer, config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(DataError, match=r"is gated or private: accept its terms .*`hf auth login` or set HF_TOKEN"):
        load(config(root=ADDRESS))


def test_what_is_not_there_is_named(hub: HubServer, config: Make) -> None:
    with pytest.raises(DataError, match=r"hf://datasets/owner/other is not on the Hub, or you have no access"):
        load(config(root="hf://datasets/owner/other"))
    hub.shutdown()
    hub.server_close()
    with pytest.raises(DataError, match=r"the Hub cannot be reached"):
        load(config(root=ADDRESS))


@pytest.mark.parametrize("answer", [b"<html>", b"{", b"[1]", b'[{"type": "file"}]', b"[" * 10**5, b"\xff"])
def test_an_answer_that_is_not_the_hubs_is_named(hub: HubServer, config: Make, answer: bytes) -> None:
    hub.tree = answer
    with pytest.raises(DataError, match=r"hf://datasets/owner/name: the answer is not the Hub's .*check HF_ENDPOINT"):
        load(config(root=ADDRESS))


def test_its_state_is_that_of_the_commit(hub: HubServer, config: Make) -> None:
    state = source_state(config(root=ADDRESS), StorageConfig())
    assert state == source_state(config(root=f"{ADDRESS}@{COMMIT}"), StorageConfig())
