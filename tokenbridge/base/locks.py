"""Locks between processes, as files that a killed process does not leave locked."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tokenbridge.base.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, what: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock at ``path`` during the body. Its folder is made if it is missing.

    Args:
        what: what the lock protects, for the message if another process holds it.
        wait: wait for the other process.

    Raises:
        UserError: if another process holds the lock and ``wait`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        acquired = lock.acquire(timeout=0)
    except Timeout as error:
        held = f"another process is using {what}"
        if not wait:
            raise UserError(f"{held}: repeat this when it has ended") from error
        logger.info(f"{held}: waiting for it to end")
        acquired = lock.acquire()
    with acquired:
        yield
