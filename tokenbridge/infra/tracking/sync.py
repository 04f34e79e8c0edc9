"""Send spools to MLflow: for ``LiveSync``, or all pending ones from the command line.

``python -m tokenbridge.infra.tracking.sync [project folder]``
"""

import shutil
import sys
from pathlib import Path

from filelock import FileLock

from tokenbridge.base.environment import prepare_environment
from tokenbridge.config.project import find_project
from tokenbridge.infra.tracking import say
from tokenbridge.infra.tracking.live import LAST_WAIT_SECONDS
from tokenbridge.infra.tracking.pages import public_uri
from tokenbridge.infra.tracking.pending import Spool, SyncReport, find_spools
from tokenbridge.infra.tracking.replay import Replay
from tokenbridge.infra.tracking.spool import SPOOL_FOLDER
from tokenbridge.infra.tracking.store import connect, replace_damaged
from tokenbridge.infra.tracking.uri import tracking_uri


def sync_all(root: Path, wait: float = 0.0) -> SyncReport:
    """Send everything new under ``root``. If another process is sending, give up after ``wait`` seconds."""
    report = SyncReport()
    with report.noting_problems():
        if spools_with_news(root):  # otherwise MLflow is not even asked
            with FileLock(root / SPOOL_FOLDER / "sync.lock", timeout=wait):
                send_spools(root, report)
                if report.problem and replace_damaged(root):
                    report.problem = None
                    send_spools(root, report)
    return report


def spools_with_news(root: Path) -> list[Spool]:
    return [spool for spool in find_spools(root) if spool.has_news()]


def send_spools(root: Path, report: SyncReport) -> None:
    for spool in spools_with_news(root):
        if spool.set_damaged_aside():
            continue
        store = connect(root)  # fails if the store has died, and so ends the pass
        with report.noting_problems():
            state = Replay(store, spool).send()
            report.sent.append(spool.id)
            if state.done and not state.refused:
                shutil.rmtree(spool.folder, ignore_errors=True)


def main() -> int:
    prepare_environment()
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else find_project()
    report = sync_all(root, wait=LAST_WAIT_SECONDS)
    say(f"{len(report.sent)} runs sent to {public_uri(tracking_uri(root))}")
    if report.problem:
        say(f"{len(spools_with_news(root))} runs left for later: {report.problem}")
    return 1 if report.problem else 0


if __name__ == "__main__":
    sys.exit(main())
