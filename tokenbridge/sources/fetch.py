"""Fetching: from a source of the catalogue (conf/data) to checked Parquet shards."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenbridge.base.progress import Progress
from tokenbridge.config import DataConfig, StorageConfig
from tokenbridge.images import TEST, TRAIN, VALIDATION
from tokenbridge.images.shards import MANIFEST, shard_schema, shard_spans, write_manifest, write_shard
from tokenbridge.images.splits import Encoded, Labels, Split, balanced_subset, cut_validation
from tokenbridge.sources.broken import Tolerance
from tokenbridge.sources.fetch_progress import FetchProgress
from tokenbridge.sources.huggingface import load_huggingface
from tokenbridge.sources.idx import load_idx
from tokenbridge.sources.imagefolder import load_imagefolder
from tokenbridge.sources.imagenet_tars import load_imagenet_tars
from tokenbridge.sources.state import source_state
from tokenbridge.sources.webdataset import load_webdataset

logger = logging.getLogger(__name__)

Found = tuple[Encoded, str, int]


def fetch_images(
    config: DataConfig, destination: Path, every: float = 5.0, storage: StorageConfig | None = None
) -> dict[str, Any]:
    """Check the source, write its shards to ``destination``, and return the manifest.

    If the source has not changed, the whole shards that an interrupted fetch left there are kept. The content does not
    depend on which mirror, folder or bucket the images came from.

    Args:
        every: seconds between progress lines.
        storage: where S3 is; None: as AWS's own variables and files say.

    Raises:
        DataError: if a file cannot be used; the message names the file, the problem and the remedy.
        StorageError: if S3 refuses or does not answer.
    """
    storage = storage or StorageConfig()
    with tempfile.TemporaryDirectory() as scratch:
        fetched = FetchProgress(destination, source_state(config, storage))
        label_names, splits = open_source(config, Path(scratch), storage, every, proven=bool(fetched.done))
        destination.mkdir(parents=True, exist_ok=True)
        return write_images(config, destination, label_names, splits, every, fetched)


def open_source(
    config: DataConfig, scratch: Path, storage: StorageConfig, every: float, proven: bool
) -> tuple[list[str], dict[str, Split]]:
    """Return label names and the splits: ``train``, ``test``, and ``validation`` if the source has it.

    Args:
        proven: whether an interrupted fetch already checked the digests of these files.
    """
    if config.source in ("imagefolder", "s3"):
        return load_imagefolder(config, storage)
    if config.source == "webdataset":
        return load_webdataset(config, storage, every)
    if config.source == "huggingface":
        return load_huggingface(config, storage)
    if config.source == "imagenet_tars":
        return load_imagenet_tars(config, storage, every, proven)
    return load_idx(config, scratch)


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
                known, tolerance.converted = len(tolerance.left_out), []
                examples = counted(images.examples(indices[span.start : span.stop]), progress)
                shard = write_shard(folder / file, tolerance.whole(examples), schema)
                fetched.add(split, shard, tolerance.left_out[known:], tolerance.converted)
    converted = {split: fetched.converted(split) for split in splits}
    if count := sum(map(len, converted.values())):
        logger.info(f"{count:,} images were written again as opaque 8-bit RGB: data/images/{MANIFEST} names them")
    return write_manifest(
        folder,
        name=config.name,
        image_size=config.image_size,
        label_names=label_names,
        splits={split: fetched.shards(split) for split in splits},
        licence=config.licence,
        citation=config.citation,
        left_out={split: [path for path, _ in fetched.left_out(split)] for split in splits},
        converted=converted,
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
