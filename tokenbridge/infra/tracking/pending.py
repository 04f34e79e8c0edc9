"""Spools as the syncer sees them: which have news, their events, and how much of each was sent."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from tokenbridge.base.files import parse_json, read_json, write_json
from tokenbridge.infra.tracking import say
from tokenbridge.infra.tracking.pages import public_uri
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER

UNREADABLE = (OSError, ValueError)  # what a missing or damaged file of JSON raises
DAMAGED = "damaged"  # folder for spools that cannot be sent; type of an event that cannot be read


@dataclass
class SyncState:
    """How much of a spool was sent, and to which run of which store."""

    store: str = ""
    run_id: str | None = None
    offset: int = 0  # bytes of events.jsonl that are in MLflow
    done: bool = False
    refused: list[str] = field(default_factory=list)  # what MLflow refused, and why


@dataclass
class SyncReport:
    """The result of one pass over all spools."""

    sent: list[str] = field(default_factory=list)  # ids of spools of which everything is in MLflow
    problem: str | None = None  # why something is left for later

    @contextmanager
    def noting_problems(self) -> Iterator[None]:
        """Keep any error of the block as ``problem``, because no error may stop a run. The spools keep everything."""
        try:
            yield
        except Timeout:
            self.problem = "another process is sending them"
        except Exception as error:
            self.problem = public_uri(f"{type(error).__name__}: {error}".splitlines()[0])[:200]


@dataclass
class Meta:
    """The content of ``meta.json``."""

    stage: str
    key: str
    parent: str | None
    start: int  # milliseconds
    name: str


class Spool:
    """A spool folder, as the syncer reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, folder.name
        self.events_path, self.state_path = folder / "events.jsonl", folder / "state.json"

    def meta(self) -> Meta:
        return TypeAdapter(Meta).validate_python(read_json(self.folder / "meta.json"))

    def state(self) -> SyncState:
        """Return the state. A damaged one counts as none, because everything may be sent again."""
        with suppress(*UNREADABLE):
            return self._read_state()
        return SyncState()

    def _read_state(self) -> SyncState:
        state = TypeAdapter(SyncState).validate_python(read_json(self.state_path))
        if not 0 <= state.offset <= self.events_path.stat().st_size:
            raise ValueError(f"{self.state_path} has offset {state.offset}")
        return state

    def is_damaged(self) -> bool:
        """Return whether the spool cannot be sent."""
        with suppress(*UNREADABLE):
            self.meta()
            return not self.events_path.is_file()
        return True

    def set_damaged_aside(self) -> bool:
        """Move the spool aside if it cannot be sent, and rename a damaged state; say so. Return whether it was moved.

        Only one process at a time may call this.
        """
        if self.is_damaged():
            aside = self.folder.parent / DAMAGED / self.id
            aside.parent.mkdir(exist_ok=True)
            self.folder.rename(aside)
            say(f"the record of run {self.id} is damaged, and cannot be sent: it is in {aside}")
            return True
        try:
            if self.state_path.exists():
                self._read_state()
        except UNREADABLE:
            aside = self.state_path.with_name(f"{self.state_path.name}.{DAMAGED}")
            self.state_path.replace(aside)
            say(f"{self.state_path} is damaged and called {aside.name} now: the run is sent again from its beginning")
        return False

    def save(self, state: SyncState) -> None:
        write_json(self.state_path, asdict(state))

    def abandoned(self) -> bool:
        """Return whether the writing process has ended, for whatever reason."""
        with suppress(Timeout), FileLock(self.folder / "writer.lock", blocking=False):
            return True
        return False

    def has_news(self) -> bool:
        """Return whether a pass over the spool would send or delete something."""
        if self.is_damaged():
            return self.abandoned()
        state = self.state()
        if state.done:
            return not state.refused  # a kill prevented its deletion
        return self.events_path.stat().st_size > state.offset or self.abandoned()

    def events(self, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (offset behind the event, event), from ``offset`` to the line that is the last whole one now.

        Lines that a busy writer adds meanwhile are left for the next call. Otherwise other spools would have to wait.
        A line that cannot be read becomes an event of type DAMAGED.
        """
        end = self.events_path.stat().st_size
        with self.events_path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if offset + len(line) > end or not line.endswith(b"\n"):
                    return  # written since the call, not yet complete, or cut short by a kill
                offset += len(line)
                yield offset, _event(line)


def _event(line: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        event = parse_json(line)
        if isinstance(event, dict) and isinstance(event.get("type"), str):
            return event
    return {"type": DAMAGED, "line": line.decode(errors="replace")[:200]}


def find_spools(root: Path) -> list[Spool]:
    """Return all spools under ``root``, oldest first."""
    return [Spool(path.parent) for path in sorted((root / SPOOL_FOLDER).glob("*/meta.json"))]
