"""The progress of a fetch, saved after every shard, so that an interrupted fetch can resume."""

import shutil
from pathlib import Path
from typing import Any

from tokenbridge.base.files import read_json, write_json
from tokenbridge.sources.broken import LeftOut


class FetchProgress:
    """The shards of a folder that are whole, in a file beside the folder."""

    def __init__(self, folder: Path, state: str) -> None:
        """Read the progress in ``folder``. Remove the folder if it was made from another ``state`` of the source."""
        self.path, self.state, self.done = folder.with_suffix(".json"), state, dict[str, dict[str, Any]]()
        found = read_json(self.path) if self.path.exists() else {}
        if found.get("state") == state:
            # a fetch that was killed after moving its shards starts again
            self.done = {name: each for name, each in found["shards"].items() if (folder / name).exists()}
        elif folder.exists():
            shutil.rmtree(folder)

    def add(self, split: str, shard: dict[str, Any], left_out: list[LeftOut]) -> None:
        """Record a shard that is whole, as ``write_shard`` returned it, and its broken images ``left_out``."""
        self.done[shard["file"]] = {"split": split, "shard": shard, "left_out": left_out}
        write_json(self.path, {"state": self.state, "shards": self.done})

    @property
    def seen(self) -> int:
        """The number of images that were read, broken images included."""
        return sum(each["shard"]["count"] + len(each["left_out"]) for each in self.done.values())

    def shards(self, split: str) -> list[dict[str, Any]]:
        return [each["shard"] for each in self.done.values() if each["split"] == split]

    def left_out(self, split: str) -> list[LeftOut]:
        return [
            (path, label) for each in self.done.values() if each["split"] == split for path, label in each["left_out"]
        ]
