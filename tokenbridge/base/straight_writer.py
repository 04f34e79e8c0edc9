"""Each process's part of a checkpoint as one safetensors file, written straight from the memory of its tensors.

torch's own writer first assembles the whole file in memory, twice, and no other thread can run meanwhile. The training
should go on during the write, but with that writer it stands still for longer than the copy of its state takes.
For the same reason each process flushes and hashes its own file here, in the thread that wrote it.
"""

import json
from pathlib import Path
from typing import cast

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import (  # private: torch's minor version is fixed
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
    SAVED_OFFSETS_KEY,
    _gen_file_name,
)
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from tokenbridge.base.files import flush, sha256_file


class StraightWriter(HuggingFaceStorageWriter):
    """torch's safetensors writer for many processes, with another way to write the bytes to the file.

    Attributes:
        digests: file -> sha256, of the files of all processes; known to the first process when all are written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder, self.digests = folder, dict[str, str]()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        if plan.items:
            tensors = {item.index.fqn: cast(Tensor, planner.resolve_data(item)) for item in plan.items}
            offsets = {item.index.fqn: {SAVED_OFFSETS_KEY: item.index.offset} for item in plan.items}
            about = {
                CUSTOM_METADATA_KEY: json.dumps(offsets),
                DCP_VERSION_KEY: str(HF_DCP_VERSION),
                FORMAT_KEY: FORMAT_VALUE,
            }
            path = self.folder / _gen_file_name(1, 1, plan.storage_data["shard_index"])
            save_file(tensors, path, about)
            flush(path)
            results = [WriteResult(MetadataIndex(path.name), path.stat().st_size, sha256_file(path))]
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.digests = {result.index.fqn: result.storage_data for each in results for result in each}
