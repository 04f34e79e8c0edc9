"""Spools as the syncer sees them: which have news, their events, and how much of each was sent."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tokenbridge.base.files import read_json, write_json
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER


@dataclass
class SyncState:
    """How much of a spool was sent, and to which run of which store."""

    store: str = ""
    run_id: str | None = None
    offset: int = 0  # bytes of events.jsonl that are in MLflow
    done: bool = False
    refused: list[str] = field(default_factory=list)  # what MLflow refused, and why


class Spool:
    """A spool folder, as the syncer reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, folder.name
        self.events_path, self.state_path = folder / "events.jsonl", folder / "state.json"

    def state(self) -> SyncState:
        return SyncState(**read_json(self.state_path)) if self.state_path.exists() else SyncState()

    def save(self, state: SyncState) -> None:
        write_json(self.state_path, asdict(state))

    def abandoned(self) -> bool:
        """Return whether the writing process has ended, for whatever reason."""
        try:
            with FileLock(self.folder / "writer.lock", blocking=False):
                return True
        except Timeout:
            return False

    def has_news(self) -> bool:
        """Return whether a pass over the spool would send or delete something."""
        state = self.state()
        if state.done:
            return not state.refused  # a kill prevented its deletion
        return self.events_path.stat().st_size > state.offset or self.abandoned()

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


def find_spools(root: Path) -> list[Spool]:
    """Return all spools under ``root``, oldest first."""
    return [Spool(path.parent) for path in sorted((root / SPOOL_FOLDER).glob("*/meta.json"))]
