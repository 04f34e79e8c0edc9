"""Imports of large packages, such as torch, without the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Let the garbage collector rest while the body imports modules.

    Imports make a million objects that stay, and looking at them takes a second. The collector never does so later.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
