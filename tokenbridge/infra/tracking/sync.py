"""Send spools to MLflow: live from a thread (``LiveSync``), or all pending ones from the command line.

``python -m tokenbridge.infra.tracking.sync [project folder]``
"""

import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from tokenbridge.infra.tracking.pending import Spool, find_spools
from tokenbridge.infra.tracking.replay import Replay
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER
from tokenbridge.infra.tracking.store import Store, connect, tracking_uri

RETRY_SECONDS = 60.0  # between attempts while MLflow does not answer
LAST_WAIT_SECONDS = 600.0  # for another process that is syncing; after that the rest is left to it


@dataclass
class SyncReport:
    """The result of one pass. Ids are spool ids."""

    sent: list[str] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)  # left for later
    refused: list[str] = field(default_factory=list)  # what MLflow refused; kept in the spool
    problem: str | None = None  # why something is left for later


def brief(error: Exception) -> str:
    """Return the first line of an error, short enough for a log."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def sync_all(root: Path, keep: bool = False, wait: float = 0.0) -> SyncReport:
    """Send everything new under ``root``. If another process is sending, give up after ``wait`` seconds.

    Args:
        keep: do not delete the spools of complete runs.
    """
    if not has_work(root, keep):
        return SyncReport()
    try:
        with FileLock(root / SPOOL_FOLDER / "sync.lock").acquire(timeout=wait):
            return send_spools(root, keep)
    except Timeout:
        return SyncReport(pending=[s.id for s in find_spools(root)], problem="another process is sending them")


def has_work(root: Path, keep: bool) -> bool:
    return any(spool.has_news() or (not keep and disposable(spool)) for spool in find_spools(root))


def disposable(spool: Spool) -> bool:
    state = spool.state()
    return state.done and not state.refused


def send_spools(root: Path, keep: bool) -> SyncReport:
    report = SyncReport()
    news = [spool for spool in find_spools(root) if spool.has_news()]
    for position, spool in enumerate(news):
        try:
            send_spool(connect(root), spool, report)
        except Exception as error:  # no error may stop a run, and the spool keeps everything
            report.problem = brief(error)
            report.pending.append(spool.id)
            if not reachable(root):
                report.pending += [later.id for later in news[position + 1 :]]
                break
    if not keep:
        for spool in find_spools(root):
            if disposable(spool):
                spool.delete()
    return report


def send_spool(store: Store, spool: Spool, report: SyncReport) -> None:
    before = len(spool.state().refused)
    state = Replay(store, spool).send()
    report.sent.append(spool.id)
    report.refused += [f"{spool.folder}: {reason}" for reason in state.refused[before:]]
    if state.done:
        report.completed.append(spool.id)


def reachable(root: Path) -> bool:
    try:
        connect(root)
    except Exception:
        return False
    return True


class LiveSync:
    """Send spools from a thread while the ``with`` block runs, and once more when the block ends.

    No error here reaches the block. The first problem, every refusal and every recovery are reported on stderr.
    """

    def __init__(self, root: Path, interval: float = 5.0) -> None:
        self.root, self.interval = root, interval
        self.troubled = self.told = False
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, name="MLflow sync", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stopping.set()
        self.thread.join()
        self.sync(wait=LAST_WAIT_SECONDS)

    def run(self) -> None:
        while not self.stopping.wait(RETRY_SECONDS if self.troubled else self.interval):
            self.sync()

    def sync(self, wait: float = 0.0) -> None:
        try:
            report = sync_all(self.root, wait=wait)
        except Exception as error:
            report = SyncReport(problem=brief(error))
        for refusal in report.refused:
            say(f"MLflow refused a record, which stays in its spool: {refusal}")
        if report.problem and not self.told:
            say(f"MLflow at {tracking_uri(self.root)} does not take runs now ({report.problem}).")
            say(f"  Work goes on; runs are kept in {self.root / SPOOL_FOLDER} and sent when it answers, or later by")
            say(f"  python -m tokenbridge.infra.tracking.sync {self.root}")
            self.told = True
        if self.troubled and report.sent and not report.problem:
            say("MLflow answers again; nothing was lost")
        self.troubled = report.problem is not None


def say(line: str) -> None:
    print(f"tracking: {line}", file=sys.stderr, flush=True)


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    report = sync_all(root, wait=LAST_WAIT_SECONDS)
    sent, complete = len(report.sent), len(report.completed)
    if sent:
        say(f"{sent} runs sent to {tracking_uri(root)}: {complete} complete, {sent - complete} still running")
    for refusal in report.refused:
        say(f"refused: {refusal}")
    if report.problem:
        say(f"{len(report.pending)} runs left for later: {report.problem}")
        return 1
    if not sent:
        say("nothing pending")
    return 0


if __name__ == "__main__":
    sys.exit(main())
