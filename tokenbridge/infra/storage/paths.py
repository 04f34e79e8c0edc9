"""Check whether a name that comes from elsewhere may become a path below a folder."""

from pathlib import PurePosixPath


def is_plain(path: str) -> bool:
    """Return whether ``path`` is relative, printable, in its shortest form, and stays below its folder."""
    parts = PurePosixPath(path).parts
    unusual = any(character == "\\" or not character.isprintable() for character in path)
    return bool(parts) and "/".join(parts) == path and not unusual and ".." not in parts
