"""Whatever is in the files of a spool, the syncer reads it or sets it aside."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenbridge.infra.tracking.pending import DAMAGED, Spool

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
KEYS = st.sampled_from(
    ["store", "run_id", "offset", "done", "refused", "stage", "key", "parent", "start", "name", "type"]
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6))
CONTENT = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode() + b"\n")


WHOLE = {
    "state.json": b'{"offset": 0}',
    "meta.json": b'{"stage": "train", "name": "train", "key": "key", "parent": null, "start": 0}',
    "events.jsonl": b'{"type": "finish", "time": 0, "status": "FINISHED"}\n',
}


@settings(max_examples=100, derandomize=True)
@given(name=st.sampled_from(sorted(WHOLE)), content=CONTENT)
def test_no_content_stops_the_syncer(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    spool = Spool(tmp_path_factory.mktemp("spools") / "train")
    spool.folder.mkdir()
    for each, whole in WHOLE.items():
        (spool.folder / each).write_bytes(content if each == name else whole)
    spool.has_news()
    if spool.set_damaged_aside():
        assert (spool.folder.parent / DAMAGED / spool.id / name).read_bytes() == content
        return
    assert all(isinstance(event["type"], str) for _, event in spool.events(spool.state().offset))
