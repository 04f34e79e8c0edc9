"""Spools as the syncer sees them: which have news, their events, and how much of each was sent."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tokenbridge.base.files import read_json, write_json
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER


@dataclass
class SyncState:
    """How much of a spool was sent, and to which store."""

    store: str = ""
    run_id: str | None = None
    offset: int = 0  # bytes of events.jsonl that are in MLflow
    done: bool = False
    refused: list[str] = field(default_factory=list)  # what MLflow refused, and why


class Spool:
    """A spool folder, as the syncer reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, folder.name
        self.events_path = folder / "events.jsonl"

    def exists(self) -> bool:
        return (self.folder / "meta.json").exists()

    def meta(self) -> dict[str, Any]:
        content: dict[str, Any] = read_json(self.folder / "meta.json")
        return content

    def state(self) -> SyncState:
        path = self.folder / "state.json"
        return SyncState(**read_json(path)) if path.exists() else SyncState()

    def save(self, state: SyncState) -> None:
        write_json(self.folder / "state.json", asdict(state))

    def abandoned(self) -> bool:
        """Return whether the writing process has ended, for whatever reason."""
        lock = FileLock(self.folder / "writer.lock")
        try:
            with lock.acquire(blocking=False):
                return True
        except Timeout:
            return False

    def has_news(self) -> bool:
        state = self.state()
        grown = self.events_path.stat().st_size > state.offset
        return not state.done and (grown or state.run_id is None or self.abandoned())

    def events(self, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (offset behind the event, event), from ``offset`` to the line that is the last whole one now.

        Lines that a busy writer adds meanwhile are left for the next call. Otherwise other spools would have to wait.
        """
        end = self.events_path.stat().st_size
        with self.events_path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if offset + len(line) > end or not line.endswith(b"\n"):
                    return  # written since the call, not yet complete, or cut short by a kill
                offset += len(line)
                yield offset, json.loads(line)

    def last_time(self) -> int:
        """Return the time of the last write, in milliseconds."""
        return self.events_path.stat().st_mtime_ns // 1_000_000

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def find_spools(root: Path) -> list[Spool]:
    """Return all spools under ``root``, oldest first."""
    folders = sorted((root / SPOOL_FOLDER).glob("*/meta.json"))
    return [Spool(path.parent) for path in folders]
