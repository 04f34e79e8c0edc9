"""Send spools to MLflow while a run goes on."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from tokenbridge.base.errors import WorkFailedError
from tokenbridge.infra.tracking import say
from tokenbridge.infra.tracking.pages import public_uri
from tokenbridge.infra.tracking.pending import SyncReport
from tokenbridge.infra.tracking.process import SYNC, MLflowProcess
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER
from tokenbridge.infra.tracking.uri import tracking_uri

RETRY_SECONDS = 60.0  # between attempts while MLflow does not answer
PAGE = "tokenbridge.infra.tracking.store:page_of"
LAST_WAIT_SECONDS = 600.0  # for another process that is syncing; after that the rest is left to it


class LiveSync:
    """Send spools from a thread while the ``with`` block runs, and once more when the block ends.

    No error here reaches the block. The first problem and every recovery are reported on stderr.

    Args:
        process: sends them, and ends with the block; None: a new one.

    Attributes:
        linked: the spool whose run's address is wanted; None: no address.
        page: that address, when the block has ended and MLflow has the run.
    """

    linked: str | None = None
    page: str | None = None

    def __init__(self, root: Path, interval: float = 5.0, process: MLflowProcess | None = None) -> None:
        self.root, self.interval, self.process = root.absolute(), interval, process or MLflowProcess()
        self.troubled = self.reported = False
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, name="MLflow sync", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.stopping.set()
            self.thread.join()
            self.sync(wait=LAST_WAIT_SECONDS)
            if self.linked:
                with suppress(WorkFailedError):
                    self.page = self.process.call(PAGE, self.root, self.linked)

    def run(self) -> None:
        self.sync()  # at once, because the first connection to a store takes longest
        while not self.stopping.wait(RETRY_SECONDS if self.troubled else self.interval):
            self.sync()

    def sync(self, wait: float = 0.0) -> None:
        try:
            report: SyncReport = self.process.call(f"{SYNC}:sync_all", self.root, wait)
        except WorkFailedError as error:
            report = SyncReport(problem=str(error))
        if report.problem and not self.reported:
            say(f"MLflow at {public_uri(tracking_uri(self.root))} does not take runs now ({report.problem}).")
            say(f"  Work goes on; runs are kept in {self.root / SPOOL_FOLDER} and sent when it answers, or later by")
            say(f"  python -m {SYNC} {self.root}")
            self.reported = True
        if self.troubled and report.sent and not report.problem:
            say("MLflow answers again; nothing was lost")
        self.troubled = report.problem is not None
