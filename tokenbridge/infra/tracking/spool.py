"""The local record of a run: a stage appends to it, and ``tokenbridge.infra.tracking.sync`` replays it into MLflow.

``<root>/.spool/<time>-<stage>-<id>/`` holds

- ``meta.json``: stage, name, key, parent, start time; written last, so a folder without it is no spool;
- ``events.jsonl``: one event per line with its wall-clock time in milliseconds; a torn last line does not count;
- ``files/``: artifacts and models, copied or linked when they were logged;
- ``writer.lock``: held while the writing process lives, so that the syncer recognises a run that was killed;
- ``state.json``: written by the syncer: the run's id in MLflow, and how much was sent.
"""

import json
import os
import re
import shutil
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from filelock import FileLock

from tokenbridge.base.files import explain_disk_error, write_json
from tokenbridge.infra.git import git_tags
from tokenbridge.infra.tracking.pages import public_uri
from tokenbridge.infra.tracking.system import SystemSampler

SPOOL_FOLDER = ".spool"
Status = Literal["FINISHED", "FAILED", "KILLED"]


def link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, or copy it if that fails. A link is enough, since a model is never edited in place."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system
        shutil.copy2(source, target)


class Tracker:
    """The recorder of one run. Every record is on disk when its call returns, and no call waits for MLflow.

    As a context manager it ends the run as FINISHED, as FAILED on an exception, and as KILLED when interrupted.
    If the process dies before that, the next sync ends the run as KILLED.

    Attributes:
        curves: names of the metrics that were logged with a step above 0.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, folder.name
        self.writing = threading.Lock()
        self.alive = FileLock(folder / "writer.lock", thread_local=False)
        self.alive.acquire(blocking=False)
        self.file = (folder / "events.jsonl").open("ab", buffering=0)  # unbuffered: one write per event
        self.sampler: SystemSampler | None = None
        self.curves: set[str] = set()

    @classmethod
    def open(
        cls,
        stage: str,
        key: str,
        root: Path,
        parent: str | None = None,
        resumed_from: str | None = None,
        name: str | None = None,
        system_interval: float = 5.0,
    ) -> Self:
        """Start a run of ``stage``.

        Args:
            key: digest of the stage's parameters and inputs, by which ``Store.made_by`` finds the run.
            root: the project's folder; the spool lies under ``root/.spool``.
            parent: ``Tracker.id`` of the parent run.
            resumed_from: ``Tracker.id`` of the interrupted run that this run continues.
            name: the run's name in MLflow; ``stage`` by default.
            system_interval: seconds between samples of the system metrics; 0 records none.
        """
        start = datetime.now(UTC)
        safe_stage = re.sub(r"[^\w@.-]", "_", stage)
        folder = root / SPOOL_FOLDER / f"{start:%Y%m%dT%H%M%S%f}-{safe_stage}-{uuid.uuid4().hex[:8]}"
        (folder / "files").mkdir(parents=True)
        tracker = cls(folder)
        tracker.tags(git_tags(root) | ({"resumed_from": resumed_from} if resumed_from else {}))
        milliseconds = int(start.timestamp() * 1000)
        meta = {"stage": stage, "name": name or stage, "key": key, "parent": parent, "start": milliseconds}
        write_json(folder / "meta.json", meta)
        if system_interval > 0:
            tracker.sampler = SystemSampler(tracker.metrics, system_interval)
        return tracker

    def params(self, values: dict[str, Any]) -> None:
        """Log settings, which may be nested. MLflow shows them with dotted names."""
        self._append("params", values=values)

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        if step > 0:
            self.curves |= values.keys()
        self._append("metrics", values={name: float(value) for name, value in values.items()}, step=step)

    def tags(self, values: dict[str, str]) -> None:
        self._append("tags", values={name: str(value) for name, value in values.items()})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file or folder now, and log the copy. ``folder`` is where MLflow shows it."""
        self._append("artifact", file=self._take(path, shutil.copy2), folder=folder)

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Log the name and digest of a data set. ``context`` is its use, such as training."""
        self._append("dataset", name=name, digest=digest, source=source, context=context)

    def model(self, path: Path, name: str) -> None:
        """Log a pipeline folder as an MLflow model that can be served."""
        self._append("model", file=self._take(path, link_or_copy), name=name)

    def version(
        self, path: Path, *, name: str, model: str, tags: dict[str, str], metrics: dict[str, float], description: str
    ) -> None:
        """Register a pipeline folder, logged as ``model``, as a version of the registered model ``name``."""
        about = {"name": name, "model": model, "tags": tags, "metrics": metrics, "description": description}
        self._append("version", file=self._take(path, link_or_copy), **about)

    def reused(self, stage: str, key: str) -> None:
        """Record that ``stage`` was skipped. The tag ``reused.<stage>`` names the run that made its outputs."""
        self._append("reused", stage=stage, key=key)

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run. A second call does nothing."""
        if self.file.closed:
            return
        if self.sampler:
            self.sampler.stop()
        self._append("finish", status=status)
        self.file.close()
        self.alive.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.finish()
            return
        with suppress(Exception):  # the error from the body says more
            self.tags({"error": public_uri(f"{type(error).__name__}: {error}")})
            self.finish("FAILED" if isinstance(error, Exception) else "KILLED")

    def _append(self, kind: str, **fields: Any) -> None:
        with self.writing:
            event = {"type": kind, "time": time.time_ns() // 1_000_000, **fields}
            self._write(json.dumps(event, default=str).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        """Write the whole line or nothing. A line that a full disk cut short would spoil the next one."""
        end = self.file.seek(0, os.SEEK_END)
        with explain_disk_error(self.folder):
            try:
                while line:
                    line = line[self.file.write(line) :]  # a disk that is almost full takes a part first
            except OSError:
                self.file.truncate(end)
                raise

    def _take(self, path: Path, copy: Any) -> str:
        source = path.absolute()
        if not source.exists():
            raise FileNotFoundError(f"{path} cannot be logged: it does not exist")
        target = self.folder / "files" / uuid.uuid4().hex[:12] / source.name
        with explain_disk_error(target):
            target.parent.mkdir()
            if source.is_dir():
                shutil.copytree(source, target, copy_function=copy)
            else:
                copy(str(source), str(target))
        return target.relative_to(self.folder).as_posix()


def share_spool(root: Path, worktree: Path) -> None:
    """Let runs in ``worktree`` be sent as runs of the project at ``root``; ``make clean`` and the like keep them."""
    own, shared = worktree / SPOOL_FOLDER, root / SPOOL_FOLDER
    shared.mkdir(exist_ok=True)
    if own.is_symlink():
        own.unlink()  # the project may have been moved
    elif own.exists():
        for left in own.glob("*/"):  # an earlier version kept them apart
            left.rename(shared / left.name)
        shutil.rmtree(own)
    own.symlink_to(shared.resolve())
