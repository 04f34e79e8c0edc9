"""Outs that DVC restored are read once: DVC itself takes it for granted that they are what its cache should hold."""

import os
from collections.abc import Collection
from pathlib import Path

from tokenbridge.base.files import read_json, sha256_json, write_json
from tokenbridge.infra.dvc import locked_outs, md5_as_dvc

VERIFIED = Path(".work/verified.json")  # out -> its digest in dvc.lock, and the sizes and times of its files then


def expose_damaged(root: Path) -> list[str]:
    """Return the outs that are not what dvc.lock records, and let DVC see it: it then restores them or runs the stage.

    An out that was verified, and whose files have their sizes and times, is not read again.
    """
    known, here = _read(root), _present(root)
    unknown = {out: entry for out, entry in here.items() if known.get(out) != entry}
    damaged = [out for out, (md5, _) in unknown.items() if md5_as_dvc(root / out) != md5]
    for out in damaged:
        for file in _files(root / out):
            os.utime(file)  # DVC hashes a file whose time changed
    if unknown:
        note_verified(root, here.keys() - damaged)
    return damaged


def note_verified(root: Path, outs: Collection[str]) -> None:
    """Note that these outs are what dvc.lock records, such as those that a stage has just made."""
    write_json(root / VERIFIED, _read(root) | {out: entry for out, entry in _present(root).items() if out in outs})


def _read(root: Path) -> dict[str, list[str]]:
    try:
        return dict(read_json(root / VERIFIED))
    except (OSError, ValueError, TypeError):  # no file yet, or a damaged one
        return {}


def _present(root: Path) -> dict[str, list[str]]:
    return {out: [md5, _state(root / out)] for out, md5 in locked_outs(root).items() if (root / out).exists()}


def _state(path: Path) -> str:
    found = {str(file.relative_to(path)): file.stat() for file in _files(path)}
    return sha256_json({name: [state.st_size, state.st_mtime_ns] for name, state in found.items()})


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
