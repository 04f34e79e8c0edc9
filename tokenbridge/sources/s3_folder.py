"""A prefix on S3 as a tree of folders."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenbridge.sources.places import StoredFile


@dataclass
class Node:
    """A file, or a folder made from the names of files, with the methods of pathlib.Path that an imagefolder needs."""

    place: str
    name: str = ""
    file: StoredFile | None = None
    children: dict[str, "Node"] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.place

    def is_dir(self) -> bool:
        return bool(self.children)

    def iterdir(self) -> Iterator["Node"]:
        return iter(self.children.values())

    def __truediv__(self, name: str) -> "Node":
        return self.children.get(name) or Node(f"{self.place}/{name}", name)


def tree_of(place: str, files: list[StoredFile]) -> Node:
    """Build folders from the names of files, and return the root folder."""
    root = Node(place)
    for file in files:
        node = root
        for part in file.name.split("/"):
            child = node / part
            node.children[part] = child
            node = child
        node.file = file
    return root
