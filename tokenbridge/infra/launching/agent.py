"""Run torchrun on one node, end it with the process that started it, and note which worker failed first."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from tokenbridge.infra.launching.failure import note_failure
from tokenbridge.infra.launching.work import DRIVER_VARIABLE

WATCH_SECONDS = 0.5


def main(folder: Path) -> None:
    """Run torchrun with this process's arguments. If it fails, leave a note about the failure in ``folder``."""
    parent = int(os.environ.pop(DRIVER_VARIABLE, os.getppid()))
    end_with_parent(signal.SIGTERM, parent)  # torchrun then ends its workers
    # these imports take seconds, and the driver may end meanwhile
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:
        note_failure(folder, error.failures)
        raise


def end_with_parent(signum: signal.Signals, parent: int) -> None:
    """Send ``signum`` to this process when its parent, the process with the id ``parent``, has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signum)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv.pop(1)))
