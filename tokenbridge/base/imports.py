"""Imports of large packages, such as torch and diffusers, without work that nobody needs."""

import gc
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

SCAN = "packages_distributions"  # what reads the file lists of all installed packages


class ImportedLater(ModuleType):
    """Stands in ``sys.modules`` for a module of this name until something in the module is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # python itself asks every module for these
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Spare the imports of the body three kinds of work that nothing here needs.

    - The garbage collector rests. Imports make a million objects that stay, and the collector does not look at them
      later.
    - diffusers reads the file lists of all installed packages, to find packages whose distribution has another name. It
      gets an empty table: nothing here uses such a package.
    - diffusers' schedulers import scipy.stats for sigmas that nothing here asks for. They get a module that is imported
      when it is used; after the body, scipy itself does the same.
    """
    later = ImportedLater("scipy.stats")
    sys.modules.setdefault(later.__name__, later)
    metadata = vars(importlib.metadata)
    scan, metadata[SCAN] = metadata[SCAN], dict
    gc.disable()
    try:
        yield
    finally:
        metadata[SCAN] = scan
        if sys.modules.get(later.__name__) is later:
            del sys.modules[later.__name__]
        gc.freeze()
        gc.enable()
