"""A prefix of images on S3, laid out as an imagefolder."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import DataError
from tokenbridge.images.splits import Split
from tokenbridge.sources.imagefiles import check_size
from tokenbridge.sources.imagefolder import load_folder
from tokenbridge.sources.places import StoredFile, list_files


@dataclass
class Node:
    """A file, or what names make look like a folder; as much of a pathlib.Path as an imagefolder needs."""

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

    def read_bytes(self) -> bytes:
        assert self.file is not None
        check_size(self.file.size, self.place)
        return self.file.read(0, self.file.size)


def load_objects(config: DataConfig, storage: StorageConfig) -> tuple[list[str], dict[str, Split]]:
    """Label names and both splits, the same as of a local copy. Lists names; images are read when they are encoded.

    Each goes through memory, ``imagefiles.READ_AHEAD`` of them at a time; none is put on disk before its shard.
    """
    if config.root is None:
        raise DataError("data.root is not set: name the prefix of your images, data.root=s3://bucket/prefix")
    return load_folder(config, tree_of(config.root.rstrip("/"), list_files(config.root, storage)))


def tree_of(place: str, files: list[StoredFile]) -> Node:
    """Folders out of names."""
    root = Node(place)
    for file in files:
        node = root
        for part in file.name.split("/"):
            child = node / part
            node.children[part] = child
            node = child
        node.file = file
    return root
