"""Whatever the bytes of a file are, its reader gives what it holds, or an error that names the file.

The doors of images, tars and HTTP answers have their own tests of this kind.
"""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sources.conftest import data_config, idx_bytes
from tests.support.photographs import tar_of
from tokenbridge.images import DataError
from tokenbridge.sources.huggingface import HubSplit, given_names
from tokenbridge.sources.idx import read_idx
from tokenbridge.sources.imagenet_tars import META, TRUTH, read_devkit
from tokenbridge.sources.labels import name_classes
from tokenbridge.sources.places import StoredFile
from tokenbridge.sources.webdataset import label_of

Edit = tuple[float, int, bytes]  # where, how many bytes are replaced, and by what
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8)), min_size=1, max_size=3)


def parquet() -> bytes:
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    images = pa.array([{"bytes": b"x", "path": "caf\u00e9.png"}] * 12)
    table = pa.table({"image": images, "label": [0, 1] * 6})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, buffer := io.BytesIO(), row_group_size=5)
    return buffer.getvalue()


def read_parquet(file: StoredFile) -> None:
    config = data_config(source="huggingface", num_classes=2, root=file.place)
    split = HubSplit(config, [file], "train")
    found = split.found()
    _, known = name_classes({*found}, given_names(config, split), config, file.place)
    list(split.images(np.arange(len(split.indices(found, known)))))


def read_idx_file(file: StoredFile, folder: Path) -> None:
    (folder / file.place).write_bytes(file.read(0, file.size))
    read_idx(folder / file.place, rank=3)


DOORS: dict[str, tuple[bytes, Callable[[StoredFile, Path], object]]] = {
    "parquet": (parquet(), lambda file, _: read_parquet(file)),
    "json": (b'{"label": ["a"], "b": 1}', lambda file, _: label_of(file.read(0, file.size), ".json", file.place, None)),
    "devkit": (gzip.compress(tar_of({META: b"x", TRUTH: b"1"})), lambda file, _: read_devkit(file)),
    "idx": (idx_bytes(np.zeros((2, 3, 4))), read_idx_file),
}


@pytest.mark.parametrize("door", DOORS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(edits=EDITS)
def test_a_damaged_file_is_named(door: str, edits: list[Edit], tmp_path_factory: pytest.TempPathFactory) -> None:
    content, read = DOORS[door]
    for where, count, new in edits:
        start = int(where * len(content))
        content = content[:start] + new + content[start + count :]
    file = StoredFile("train.file", "train.file", len(content), "", lambda start, size: content[start : start + size])
    try:
        read(file, tmp_path_factory.getbasetemp())
    except DataError as error:
        assert "train" in str(error) or "devkit" in str(error)
