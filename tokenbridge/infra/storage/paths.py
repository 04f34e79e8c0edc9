"""Names that come from elsewhere: which of them may become a path below a folder."""

from pathlib import PurePosixPath


def is_plain(path: str) -> bool:
    """Whether it is relative, in its shortest form, and stays below the folder that it is relative to."""
    parts = PurePosixPath(path).parts
    unusual = any(character == "\\" or not character.isprintable() for character in path)
    return bool(parts) and "/".join(parts) == path and not unusual and ".." not in parts
