"""Fetching: from a source of the catalogue (conf/data) to checked Parquet shards."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tokenbridge.base.files import atomic_folder
from tokenbridge.base.progress import Progress
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import TEST, TRAIN, VALIDATION, DataError
from tokenbridge.images.shards import shard_schema, shard_spans, write_manifest, write_shard
from tokenbridge.images.splits import Encoded, Labels, Split, balanced_subset, cut_validation
from tokenbridge.sources.broken import Tolerance
from tokenbridge.sources.fetch_progress import FetchProgress
from tokenbridge.sources.huggingface import load_huggingface
from tokenbridge.sources.idx import IDX_FILES, load_idx
from tokenbridge.sources.imagefolder import load_imagefolder
from tokenbridge.sources.imagenet_tars import load_imagenet_tars
from tokenbridge.sources.mirrors import fetch_files
from tokenbridge.sources.s3_folder import load_objects
from tokenbridge.sources.state import source_state
from tokenbridge.sources.webdataset import load_webdataset

Found = tuple[Encoded, str, int]


def fetch_images(
    config: DataConfig,
    destination: Path,
    every: float = 5.0,
    storage: StorageConfig | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Check the source, write its shards to ``destination``, and return the manifest.

    Without ``resume``, ``destination`` appears whole, or stays unchanged after an error. Its content does not depend on
    which mirror, folder or bucket the images came from.

    Args:
        every: seconds between progress lines.
        storage: where S3 is; None: as AWS's own variables and files say.
        resume: work in ``destination`` itself. If the source has not changed, keep the whole shards that an interrupted
            fetch left there.

    Raises:
        DataError: if a file cannot be used; the message names the file, the problem and the remedy.
        StorageError: if S3 refuses or does not answer.
    """
    storage = storage or StorageConfig()
    with tempfile.TemporaryDirectory() as scratch:
        fetched = FetchProgress(destination, source_state(config, storage)) if resume else FetchProgress()
        label_names, splits = open_source(config, Path(scratch), storage, every, proven=fetched.kept)
        with nullcontext(destination) if resume else atomic_folder(destination) as folder:
            folder.mkdir(parents=True, exist_ok=True)
            return write_images(config, folder, label_names, splits, every, fetched)


def open_source(
    config: DataConfig, scratch: Path, storage: StorageConfig, every: float, proven: bool = False
) -> tuple[list[str], dict[str, Split]]:
    """Return label names and the splits: ``train``, ``test``, and ``validation`` if the source has it.

    Args:
        proven: whether an interrupted fetch already checked the digests of these files.
    """
    if config.source == "imagefolder":
        return load_imagefolder(config)
    if config.source == "s3":
        return load_objects(config, storage)
    if config.source == "webdataset":
        return load_webdataset(config, storage, every)
    if config.source == "huggingface":
        return load_huggingface(config, storage)
    if config.source == "imagenet_tars":
        return load_imagenet_tars(config, storage, every, proven)
    return open_idx(config, scratch)


def open_idx(config: DataConfig, scratch: Path) -> tuple[list[str], dict[str, Split]]:
    files = [name for pair in IDX_FILES.values() for name in pair]
    unproven = [name for name in files if name not in config.sha256]
    if unproven:
        raise DataError(f"data.sha256 lacks {', '.join(unproven)}: give the SHA-256 of each decompressed IDX file")
    fetch_files(config.name, config.mirrors, {name: config.sha256[name] for name in files}, scratch)
    label_names = config.label_names or [str(label) for label in range(config.num_classes)]
    return label_names, load_idx(config, scratch)


def write_images(
    config: DataConfig,
    folder: Path,
    label_names: list[str],
    splits: dict[str, Split],
    every: float,
    fetched: FetchProgress,
) -> dict[str, Any]:
    cut = VALIDATION not in splits
    splits, chosen = choose_images(config, splits)
    total = sum(len(indices) for indices in chosen.values())
    progress = Progress(f"fetch {config.name}", total, every=every, done=fetched.seen)
    schema = shard_schema(label_names)
    for split, images in splits.items():
        indices = chosen[split]
        tolerance = Tolerance(split, config.max_broken, images.labels[indices], fetched.left_out(split))
        if cut and split != TEST:
            other = VALIDATION if split == TRAIN else TRAIN
            tolerance.share_with(len(chosen[other]), len(fetched.left_out(other)))
            tolerance.every_class = split == TRAIN  # each class keeps images in train
        for file, span in shard_spans(split, len(indices), config.shard_size).items():
            if file not in fetched.done:
                known = len(tolerance.left_out)
                examples = counted(images.examples(indices[span.start : span.stop]), progress)
                shard = write_shard(folder / file, tolerance.whole(examples), schema)
                fetched.add(split, shard, tolerance.left_out[known:])
    return write_manifest(
        folder,
        name=config.name,
        image_size=config.image_size,
        label_names=label_names,
        splits={split: fetched.shards(split) for split in splits},
        licence=config.licence,
        citation=config.citation,
        left_out={split: [path for path, _ in fetched.left_out(split)] for split in splits},
    )


def choose_images(config: DataConfig, splits: dict[str, Split]) -> tuple[dict[str, Split], dict[str, Labels]]:
    """Return the three splits in their order, and the ascending indices of the images that each keeps.

    If the source has no validation split, it is cut from the training images that ``data.max_train`` leaves.
    """
    limits = {TRAIN: config.max_train, TEST: config.max_test}
    chosen = {name: balanced_subset(split.labels, limits.get(name)) for name, split in splits.items()}
    if VALIDATION not in splits:
        kept = chosen[TRAIN]
        cut = cut_validation(splits[TRAIN].labels[kept], config.validation_images, config.validation_seed)
        splits = splits | {VALIDATION: splits[TRAIN]}
        chosen |= {TRAIN: kept[~cut], VALIDATION: kept[cut]}
    return {name: splits[name] for name in (TRAIN, VALIDATION, TEST)}, chosen


def counted(examples: Iterable[Found], progress: Progress) -> Iterator[Found]:
    for example in examples:
        yield example
        progress.advance(1)
