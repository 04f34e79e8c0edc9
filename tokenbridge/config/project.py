"""The project's folder, found from any folder below it, so that every command has one store and one pipeline."""

import os
from argparse import ArgumentTypeError
from contextlib import suppress
from pathlib import Path

from tokenbridge.config import ConfigError

MARK = "dvc.yaml"
LONGEST_NAME = 255  # bytes that file systems take for a file or folder


def find_project(folder: Path | None = None) -> Path:
    """Return the nearest project from ``folder`` upwards; by default from the current folder.

    Raises:
        ConfigError: if there is none.
    """
    here = (folder or Path()).resolve()
    for each in (here, *here.parents):
        if (each / MARK).exists():
            return each
    raise ConfigError(f"{here} is in no clone of the project, which has {MARK}: change into one")


def enter_project() -> None:
    """Make the project around the current folder the current folder, if there is one."""
    with suppress(ConfigError):
        os.chdir(find_project())


def here(text: str) -> Path:
    """Return a path of the command line so that it stays right after ``enter_project``.

    Raises:
        ArgumentTypeError: if a name in it is too long for any file.
    """
    path = Path(text)
    for name in path.parts:
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise ArgumentTypeError(f"{name[:20]}... is longer than {LONGEST_NAME} bytes: choose a shorter name")
    with suppress(ConfigError):
        if not path.is_absolute() and (project := find_project()) != Path.cwd():
            return Path(os.path.relpath(path.absolute(), project))
    return path
