"""The progress of a fetch, saved after every shard, so that an interrupted fetch can resume."""

import shutil
from pathlib import Path
from typing import Any

from tokenbridge.base.files import read_json, sha256_file, write_json
from tokenbridge.sources.broken import LeftOut


class FetchProgress:
    """The shards of a folder that are whole, in a file beside the folder."""

    def __init__(self, folder: Path, state: str) -> None:
        """Read the progress in ``folder``. Remove the folder if it was made from another ``state`` of the source.

        Shards that are damaged, or were moved before a kill, are fetched again.
        """
        self.path, self.state, self.done = folder.with_suffix(".json"), state, dict[str, dict[str, Any]]()
        try:
            found = read_json(self.path)
            known = found["shards"] if found["state"] == state else {}
            here = [name for name in known if (folder / name).is_file()]
            self.done = {
                name: known[name] for name in here if sha256_file(folder / name) == known[name]["shard"]["sha256"]
            }
        except (OSError, ValueError, LookupError, TypeError):
            known = {}  # there is no progress, or its file is damaged
        if not known:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, split: str, shard: dict[str, Any], left_out: list[LeftOut], converted: list[str]) -> None:
        """Record a shard that is whole, as ``write_shard`` returned it, and its broken and its converted images."""
        self.done[shard["file"]] = {"split": split, "shard": shard, "left_out": left_out, "converted": converted}
        write_json(self.path, {"state": self.state, "shards": self.done})

    @property
    def seen(self) -> int:
        """The number of images that were read, broken images included."""
        return sum(each["shard"]["count"] + len(each["left_out"]) for each in self.done.values())

    def shards(self, split: str) -> list[dict[str, Any]]:
        return [each["shard"] for each in self._of(split)]

    def left_out(self, split: str) -> list[LeftOut]:
        return [(path, label) for each in self._of(split) for path, label in each["left_out"]]

    def converted(self, split: str) -> list[str]:
        return [path for each in self._of(split) for path in each["converted"]]

    def _of(self, split: str) -> list[dict[str, Any]]:
        """Return what is done of a split, in the order of its shards, also if one of them was fetched again."""
        files = [file for file, each in self.done.items() if each["split"] == split]
        return [self.done[file] for file in sorted(files, key=lambda file: (len(file), file))]
