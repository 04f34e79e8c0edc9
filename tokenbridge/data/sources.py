"""From a source of the catalogue (conf/data) to checked Parquet shards."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.data import DataError
from tokenbridge.data.idx import IDX_FILES, load_idx
from tokenbridge.data.imagefolder import load_imagefolder
from tokenbridge.data.mirrors import fetch_files
from tokenbridge.data.objects import load_objects
from tokenbridge.data.shards import Example, write_manifest, write_shards
from tokenbridge.data.splits import Split
from tokenbridge.data.webdataset import load_webdataset
from tokenbridge.files import atomic_path
from tokenbridge.progress import Progress


def fetch_images(
    config: DataConfig, destination: Path, every: float = 5.0, storage: StorageConfig | None = None
) -> dict[str, Any]:
    """Check the source and write its shards to ``destination``; returns the manifest.

    ``destination`` appears whole or, on any error, stays as it was. Nothing in it depends on the mirror,
    folder or bucket that the images came from.

    Args:
        every: seconds between progress lines.
        storage: where S3 is; None leaves that to AWS's own variables and files.

    Raises:
        DataError: naming what is wrong with which file, and the remedy.
        StorageError: when S3 refuses or does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        label_names, splits = open_source(config, Path(scratch), storage or StorageConfig(), every)
        with atomic_path(destination) as folder:
            folder.mkdir()
            return write_images(config, folder, label_names, splits, every)


def open_source(
    config: DataConfig, scratch: Path, storage: StorageConfig, every: float
) -> tuple[list[str], dict[str, Split]]:
    if config.source == "imagefolder":
        return load_imagefolder(config)
    if config.source == "s3":
        return load_objects(config, storage)
    if config.source == "webdataset":
        return load_webdataset(config, storage, every)
    files = [name for pair in IDX_FILES.values() for name in pair]
    unproven = [name for name in files if name not in config.sha256]
    if unproven:
        raise DataError(f"data.sha256 lacks {', '.join(unproven)}: give the SHA-256 of each decompressed IDX file")
    fetch_files(config.name, config.mirrors, {name: config.sha256[name] for name in files}, scratch)
    label_names = config.label_names or [str(label) for label in range(config.num_classes)]
    return label_names, load_idx(config, scratch)


def write_images(
    config: DataConfig, folder: Path, label_names: list[str], splits: dict[str, Split], every: float
) -> dict[str, Any]:
    limits = {"train": config.max_train, "test": config.max_test}
    counts = {split: min(len(images.labels), limits[split] or len(images.labels)) for split, images in splits.items()}
    progress = Progress(f"fetch {config.name}", sum(counts.values()), every=every)
    shards = {}
    for split, images in splits.items():
        examples = counted(images.examples(limits[split]), progress)
        shards[split] = write_shards(folder, split, examples, label_names, config.shard_size, counts[split])
    return write_manifest(
        folder,
        name=config.name,
        image_size=config.image_size,
        label_names=label_names,
        splits=shards,
        licence=config.licence,
        citation=config.citation,
    )


def counted(examples: Iterable[Example], progress: Progress) -> Iterator[Example]:
    for example in examples:
        yield example
        progress.advance(1)
