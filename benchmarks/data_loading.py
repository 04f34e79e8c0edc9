"""Images per second at random access: memory-mapped shards beside one npz per image, the released code's way.

    python benchmarks/data_loading.py --images 10000 --folder /tmp/loading

What is stored is what ImageNet at 256 px gives: moments of KL-16, [2, 32, 16, 16] with both flips, and tokens of
[256, 16] indices of 64 levels. Values are random; only their size matters here. Each reader gives the tensors that a
training step takes, in batches of a random order, each process on one thread with its share of the images. Warm is
the second epoch; cold is the first one after the kernel has dropped these very files from its cache. Prints a table in
Markdown.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenbridge.base.arrays import SHARD_ROWS, row_shards, write_manifest, write_shard
from tokenbridge.base.files import sha256_tree
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.tokenizer.tokens import StoredTokens, pack

FLIPS, CHANNELS, SIDE = 2, 32, 16
DIMENSIONS, LEVELS, BITS = 16, 64, 6
CLASSES = 1000
BATCH = 64  # of one process, as the released script's
# all the processes are forked off one that has these modules
PRELOADED = ["tokenbridge.tokenizer.moments", "tokenbridge.tokenizer.tokens"]
Reader = Callable[[Tensor, Tensor], Tensor]
"""From images [n] and flips [n] to moments [n, 32, 16, 16], float32, or tokens [n, 256, 16], int64."""


def write_all(folder: Path, images: int) -> None:
    """The same content as shards and as npz files, in folder/<kind>."""
    rng = np.random.default_rng(0)
    for kind in ("moments", "tokens"):
        (folder / kind).mkdir(parents=True)
    (folder / "quantizer").mkdir()
    for label in range(min(images, CLASSES)):
        for kind in ("moments_npz", "tokens_npz"):
            (folder / kind / f"class{label:04d}").mkdir(parents=True)
    for shard in row_shards(folder / "moments", images):
        index, span = shard.index, shard.span
        moments = rng.standard_normal((len(span), FLIPS, CHANNELS, SIDE, SIDE), np.float32).astype(np.float16)
        tokens = rng.integers(0, LEVELS, (len(span), FLIPS, SIDE * SIDE * DIMENSIONS), np.uint8)
        write_shard(folder / "moments", index, len(span), [moments])
        write_shard(folder / "tokens", index, len(span), [pack(tokens, BITS)[:, None]])
        for image, both, indices in zip(span, moments.astype(np.float32), tokens, strict=True):
            np.savez(npz_path(folder / "moments_npz", image), moments=both[0], moments_flip=both[1])
            np.savez(npz_path(folder / "tokens_npz", image), tokens=indices[0], tokens_flip=indices[1])
    labels = np.arange(images) % CLASSES
    write_manifest(folder / "moments", labels, CLASSES)
    shape = {"height": SIDE, "width": SIDE, "dimensions": DIMENSIONS, "levels": LEVELS}
    write_manifest(folder / "tokens", labels, CLASSES, bits=BITS, quantizer=sha256_tree(folder / "quantizer"), **shape)


def npz_path(folder: Path, image: int) -> Path:
    return folder / f"class{image % CLASSES:04d}" / f"{image:08d}.npz"


def read_npz(folder: Path, kind: str) -> Reader:
    """As the released code's data set: each file opened for itself, one of the flips, stacked to a batch."""

    def read(indices: Tensor, flips: Tensor) -> Tensor:
        items = []
        for image, flip in zip(indices.tolist(), flips.tolist(), strict=True):
            with np.load(npz_path(folder, image)) as file:
                items.append(torch.from_numpy(file[f"{kind}_flip" if flip else kind]))
        return torch.stack(items)

    return read


def make_reader(folder: Path, name: str) -> Reader:
    """The reader of folder/<name>."""
    if name == "moments_npz":
        return read_npz(folder / name, "moments")
    if name == "tokens_npz":
        tokens = read_npz(folder / name, "tokens")
        return lambda indices, flips: tokens(indices, flips).long().unflatten(1, (SIDE * SIDE, DIMENSIONS))
    if name == "moments":
        return Moments(folder / name).read
    stored = StoredTokens(folder / name, folder / "quantizer")
    return lambda indices, flips: stored.read(indices, torch.zeros_like(indices), flips)


def drop_from_cache(folder: Path) -> None:
    """Write out and forget the pages of the files below; no other file's."""
    os.sync()
    for path in folder.rglob("*.np?"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def work(folder: Path, name: str, share: np.ndarray, cold: bool, start: Any, times: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = torch.from_numpy(share).split(BATCH)
    reader = make_reader(folder, name)
    for indices in () if cold else batches:
        reader(indices, torch.randint(FLIPS, indices.shape))
    start.wait()
    began = time.monotonic()
    for indices in batches:
        reader(indices, torch.randint(FLIPS, indices.shape))
    times.put((began, time.monotonic()))


def images_per_second(folder: Path, name: str, images: int, processes: int, cold: bool) -> float:
    """All images once, in random order, shared out among the processes."""
    if cold:
        drop_from_cache(folder / name)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    start, times = context.Barrier(processes), context.Queue()
    shares = np.array_split(np.random.default_rng(1).permutation(images), processes)
    workers = [context.Process(target=work, args=(folder, name, share, cold, start, times)) for share in shares]
    for worker in workers:
        worker.start()
    spans = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    return images / (max(end for _, end in spans) - min(began for began, _ in spans))


def table(folder: Path, images: int, processes: list[int], repeats: int) -> str:
    """The best of ``repeats`` warm runs each, taken in turns; one cold run."""
    lines = ["| what | processes | cache | npz per image | shards | ratio |", "|---|---|---|---|---|---|"]
    for count in processes:
        for kind in ("moments", "tokens"):
            for cold in (False, True):
                rounds = 1 if cold else repeats
                rates = [
                    [images_per_second(folder, name, images, count, cold) for name in (f"{kind}_npz", kind)]
                    for _ in range(rounds)
                ]
                npz, shards = (max(rate) for rate in zip(*rates, strict=True))
                cache = "cold" if cold else "warm"
                lines.append(f"| {kind} | {count} | {cache} | {npz:,.0f}/s | {shards:,.0f}/s | {shards / npz:.1f} |")
                print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2 * SHARD_ROWS)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="of each warm measurement; the best counts")
    parser.add_argument("--folder", type=Path, help="where to write, about 110 kB for each image; removed afterwards")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        write_all(Path(scratch), options.images)
        print(table(Path(scratch), options.images, options.processes, options.repeats))


if __name__ == "__main__":
    main()
