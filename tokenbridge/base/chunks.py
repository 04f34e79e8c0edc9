"""Work on many images, cut into chunks that processes share; each chunk has fixed images and becomes one file.

A chunk's file depends only on its images, so any number of processes makes the same files. A file that exists is not
made again. Sums depend on the number of threads, so that number is fixed too.
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

LOOK_SECONDS = 1.0  # between checks for the files of other processes
SHARED_SECONDS = 600.0  # over which the rate is measured if other processes' images come a whole chunk at a time
THREADS = 2  # of each process, unless the launcher sets a number; to use more cores, start more processes

Advance = Callable[[int], None]
"""A function that gets the number of the chunk's images done since its last call."""


@dataclass(frozen=True)
class Chunk:
    """One file, and the images that it is made from."""

    path: Path
    index: int
    span: range


def cut(count: int, size: int, path: Callable[[int], Path]) -> list[Chunk]:
    """Cut ``count`` images into chunks of ``size``. ``path`` turns a chunk's index into the path of its file."""
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
    """Call ``make`` for this process's share of the missing files, then wait for all. Every process must call this.

    ``make`` must write a whole file or none. The first process shows the progress of all. Afterwards this process
    keeps the same fixed number of threads.
    """
    limit_threads(launcher.threads or THREADS)
    if processes.first:
        for folder in {chunk.path.parent for chunk in chunks}:
            folder.mkdir(parents=True, exist_ok=True)
            clear_scratch(folder)
    missing = processes.broadcast([chunk for chunk in chunks if not chunk.path.exists()])
    own = missing[processes.rank :: processes.world]
    peers = PeerChunks([chunk for chunk in missing if chunk not in own])
    report = _reporter(label, _images(chunks), _images(missing), processes, launcher)
    for chunk in own:
        make(chunk, lambda count: report(count + peers.newly_done()))
    while peers.left:  # not in a collective: a slower process may need longer than its timeout
        time.sleep(LOOK_SECONDS)
        report(peers.newly_done())
    processes.wait()


def _reporter(label: str, total: int, left: int, processes: Processes, launcher: Launcher) -> Advance:
    """Return what shows the progress of all processes in the first one, and nothing in the others."""
    if not processes.first:
        return lambda _: None
    recent = RECENT_SECONDS if processes.world == 1 else SHARED_SECONDS
    return Progress(label, total, every=launcher.log_seconds, done=total - left, recent=recent).advance


def _images(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.span) for chunk in chunks)


class PeerChunks:
    """The files that other processes have to make."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.left = {chunk.path: len(chunk.span) for chunk in chunks}
        self.looked = time.monotonic()

    def newly_done(self) -> int:
        """Return the number of images in the files that are new since the last check; check once a second at most."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return 0
        self.looked = time.monotonic()
        return sum(self.left.pop(path) for path in list(self.left) if path.exists())
