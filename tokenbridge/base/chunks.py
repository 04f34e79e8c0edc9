"""Work on many images, cut into chunks of fixed images that are one file each, shared among processes.

A chunk's file hangs on its images alone, so any number of processes makes the same files; and a file that is there is
not made again. Sums come out differently with other numbers of threads, so that number is fixed, too.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenbridge.base.device import limit_threads
from tokenbridge.base.distributed import Processes
from tokenbridge.base.files import clear_scratch
from tokenbridge.base.progress import RECENT_SECONDS, Progress
from tokenbridge.base.protocols import Launcher

LOOK_SECONDS = 1.0  # between looks at the others' files
SHARED_SECONDS = 600.0  # that a rate is taken of, where the others' images come a whole chunk at a time
THREADS = 2  # of each process, unless the launcher sets a number; more cores are used by more processes

Advance = Callable[[int], None]
"""Told how many more images of the chunk are done."""


@dataclass(frozen=True)
class Chunk:
    """One file, and the images that it is made of."""

    path: Path
    index: int
    span: range


def cut(count: int, size: int, path: Callable[[int], Path]) -> list[Chunk]:
    """``count`` images in chunks of ``size``; ``path`` names the file of the chunk with an index."""
    spans = [range(start, min(start + size, count)) for start in range(0, count, size)]
    return [Chunk(path(index), index, span) for index, span in enumerate(spans)]


def make_chunks(
    label: str,
    chunks: Sequence[Chunk],
    make: Callable[[Chunk, Advance], None],
    *,
    processes: Processes,
    launcher: Launcher,
) -> None:
    """Have every process ``make`` its share of the files that are missing; ends when all are there.

    ``make`` must write a whole file or none. The first process shows the progress of all. What this process computes
    afterwards has the same fixed number of threads.
    """
    limit_threads(launcher.threads or THREADS)
    if processes.first:
        for folder in {chunk.path.parent for chunk in chunks}:
            folder.mkdir(parents=True, exist_ok=True)
            clear_scratch(folder)
    missing = processes.broadcast([chunk for chunk in chunks if not chunk.path.exists()])
    own = missing[processes.rank :: processes.world]
    if not processes.first:
        for chunk in own:
            make(chunk, lambda _: None)
        processes.wait()
        return
    total, left = _images(chunks), _images(missing)
    recent = RECENT_SECONDS if processes.world == 1 else SHARED_SECONDS
    progress = Progress(label, total, every=launcher.log_seconds, done=total - left, recent=recent)
    peers = PeerChunks([chunk for chunk in missing if chunk not in own])
    for chunk in own:
        make(chunk, lambda count: progress.advance(count + peers.newly_done()))
    while peers.left:
        time.sleep(LOOK_SECONDS)
        progress.advance(peers.newly_done())
    processes.wait()


def _images(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.span) for chunk in chunks)


class PeerChunks:
    """The files that other processes are to make."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.left = list(chunks)
        self.looked = time.monotonic()

    def newly_done(self) -> int:
        """Images of the files that have come since the last look; looks once a second at most."""
        if not self.left or time.monotonic() - self.looked < LOOK_SECONDS:
            return 0
        self.looked = time.monotonic()
        come = [chunk for chunk in self.left if chunk.path.exists()]
        self.left = [chunk for chunk in self.left if chunk not in come]
        return _images(come)
