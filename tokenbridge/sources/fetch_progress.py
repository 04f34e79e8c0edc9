"""What a fetch has done so far, noted after every shard, so that an interrupted one can go on."""

import shutil
from pathlib import Path
from typing import Any

from tokenbridge.base.files import read_json, write_json
from tokenbridge.sources.broken import LeftOut


class FetchProgress:
    """Shards that are whole; beside ``folder`` in a file, or in memory alone without one.

    Attributes:
        kept: whether an earlier fetch of the same source left any.
    """

    def __init__(self, folder: Path | None = None, state: str = "") -> None:
        """``state`` is the source's; what was made of another state is removed."""
        self.path = folder.with_suffix(".json") if folder is not None else None
        self.state, self.done = state, dict[str, dict[str, Any]]()
        if folder is not None and self.path is not None:
            found = read_json(self.path) if self.path.exists() else {}
            if found.get("state") == state:
                # a fetch that was killed when it had moved its shards away begins anew
                self.done = {name: each for name, each in found["shards"].items() if (folder / name).exists()}
            elif folder.exists():
                shutil.rmtree(folder)
        self.kept = bool(self.done)

    def add(self, split: str, shard: dict[str, Any], left_out: list[LeftOut]) -> None:
        """A shard as ``write_shard`` returned it is whole, and ``left_out`` of its images are broken."""
        self.done[shard["file"]] = {"split": split, "shard": shard, "left_out": left_out}
        if self.path is not None:
            write_json(self.path, {"state": self.state, "shards": self.done})

    @property
    def seen(self) -> int:
        """Images that were looked at."""
        return sum(each["shard"]["count"] + len(each["left_out"]) for each in self.done.values())

    def shards(self, split: str) -> list[dict[str, Any]]:
        return [each["shard"] for each in self.done.values() if each["split"] == split]

    def left_out(self, split: str) -> list[LeftOut]:
        return [
            (path, label) for each in self.done.values() if each["split"] == split for path, label in each["left_out"]
        ]
