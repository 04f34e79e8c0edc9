"""Files of safetensors, written without a copy in memory."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tokenbridge.base.straight_writer import NAMES, write_safetensors

SHAPES = st.lists(st.integers(0, 3), max_size=3)


@given(kinds=st.lists(st.tuples(st.sampled_from(sorted(NAMES, key=str)), SHAPES), max_size=6))
def test_safetensors_reads_what_was_written(
    kinds: list[tuple[torch.dtype, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    tensors = {f"part/{i}": torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    write_safetensors(path, tensors, {"format": "pt"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], each) and read[name].dtype == each.dtype for name, each in tensors.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_bytes_are_those_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3), "a": torch.rand(2, 2), "c": torch.tensor(1.0, dtype=torch.bfloat16)}
    write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    ours, theirs = (load_bytes(tmp_path / name) for name in ("ours", "theirs"))
    assert ours == theirs


def load_bytes(path: Path) -> bytes:
    """What stands behind the header."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(Path("/dev/full"), {"a": torch.zeros(100_000)}, {})
