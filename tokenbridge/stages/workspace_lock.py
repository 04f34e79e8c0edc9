"""The lock that allows one pipeline at a time in a project's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tokenbridge.stages.runtime import WORK


@contextmanager
def only_pipeline(root: Path) -> Iterator[None]:
    """Let one pipeline at a time run. DVC's own locks are not enough, because all share params.yaml and the outs.

    A process that reads these files for longer must take the lock too.
    """
    path = root / WORK / "pipeline.lock"
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another pipeline is at work in this folder: waiting for it to end", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
