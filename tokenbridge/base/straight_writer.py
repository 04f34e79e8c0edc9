"""Each process's part of a checkpoint as one safetensors file, written straight from the memory of its tensors.

torch's own writer first assembles the whole file in memory, twice, and no other thread can run meanwhile. The training
should go on during the write, but with that writer it stands still for longer than the copy of its state takes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import (  # private: torch's minor version is fixed
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    DEFAULT_EXTRA_METADATA_KEY,
    DTYPE_MAP,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
    NUM_BYTES_FOR_HEADER_LEN,
    SAVED_OFFSETS_KEY,
    _gen_file_name,
)
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

NAMES = {dtype: name for name, dtype in DTYPE_MAP.items()} | {torch.bool: "BOOL"}


class StraightWriter(HuggingFaceStorageWriter):
    """torch's safetensors writer for many processes, with another way to write the bytes to the file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder = folder

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if plan.items:
            tensors = {item.index.fqn: cast(Tensor, planner.resolve_data(item)) for item in plan.items}
            offsets = {item.index.fqn: {SAVED_OFFSETS_KEY: item.index.offset} for item in plan.items}
            about = {
                CUSTOM_METADATA_KEY: json.dumps(offsets),
                DCP_VERSION_KEY: str(HF_DCP_VERSION),
                FORMAT_KEY: FORMAT_VALUE,
            }
            write_safetensors(self.folder / _gen_file_name(1, 1, plan.storage_data["shard_index"]), tensors, about)
        written: Future[list[WriteResult]] = Future()
        written.set_result([])  # no one reads the results, because no index of all files is written
        return written


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write contiguous CPU tensors as safetensors does, the widest numbers first, without copying them."""
    ordered = sorted(tensors.items(), key=lambda each: (-each[1].itemsize, each[0]))
    entries: dict[str, object] = {DEFAULT_EXTRA_METADATA_KEY: about}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # aligns the numbers, which processors read faster that way
    with path.open("wb") as file:
        file.write(len(header).to_bytes(NUM_BYTES_FOR_HEADER_LEN, "little") + header)
        for _, tensor in ordered:
            file.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
