"""Send spools to MLflow: live from a thread (``LiveSync``), or all pending ones from the command line.

``python -m tokenbridge.infra.tracking.sync [project folder]``
"""

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from tokenbridge.infra.tracking.pages import public_uri
from tokenbridge.infra.tracking.pending import Spool, find_spools
from tokenbridge.infra.tracking.replay import Replay
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER
from tokenbridge.infra.tracking.store import connect, say, tracking_uri

RETRY_SECONDS = 60.0  # between attempts while MLflow does not answer
LAST_WAIT_SECONDS = 600.0  # for another process that is syncing; after that the rest is left to it


@dataclass
class SyncReport:
    """The result of one pass."""

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
            self.problem = f"{type(error).__name__}: {error}".splitlines()[0][:200]


def sync_all(root: Path, wait: float = 0.0) -> SyncReport:
    """Send everything new under ``root``. If another process is sending, give up after ``wait`` seconds."""
    report = SyncReport()
    with report.noting_problems():
        if spools_with_news(root):  # otherwise MLflow is not even asked
            with FileLock(root / SPOOL_FOLDER / "sync.lock", timeout=wait):
                send_spools(root, report)
    return report


def spools_with_news(root: Path) -> list[Spool]:
    return [spool for spool in find_spools(root) if spool.has_news()]


def send_spools(root: Path, report: SyncReport) -> None:
    for spool in spools_with_news(root):
        store = connect(root)  # fails if the store has died, and so ends the pass
        with report.noting_problems():
            state = Replay(store, spool).send()
            report.sent.append(spool.id)
            if state.done and not state.refused:
                shutil.rmtree(spool.folder, ignore_errors=True)


class LiveSync:
    """Send spools from a thread while the ``with`` block runs, and once more when the block ends.

    No error here reaches the block. The first problem and every recovery are reported on stderr.
    """

    def __init__(self, root: Path, interval: float = 5.0) -> None:
        self.root, self.interval = root, interval
        self.troubled = self.reported = False
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, name="MLflow sync", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()
        self.sync(wait=LAST_WAIT_SECONDS)

    def run(self) -> None:
        while not self.stopping.wait(RETRY_SECONDS if self.troubled else self.interval):
            self.sync()

    def sync(self, wait: float = 0.0) -> None:
        report = sync_all(self.root, wait)
        if report.problem and not self.reported:
            say(f"MLflow at {public_uri(tracking_uri(self.root))} does not take runs now ({report.problem}).")
            say(f"  Work goes on; runs are kept in {self.root / SPOOL_FOLDER} and sent when it answers, or later by")
            say(f"  python -m tokenbridge.infra.tracking.sync {self.root}")
            self.reported = True
        if self.troubled and report.sent and not report.problem:
            say("MLflow answers again; nothing was lost")
        self.troubled = report.problem is not None


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    report = sync_all(root, wait=LAST_WAIT_SECONDS)
    say(f"{len(report.sent)} runs sent to {public_uri(tracking_uri(root))}")
    if report.problem:
        say(f"{len(spools_with_news(root))} runs left for later: {report.problem}")
    return 1 if report.problem else 0


if __name__ == "__main__":
    sys.exit(main())
