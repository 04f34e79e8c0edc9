"""Run torchrun on this machine and end it with its driver, so that a killed driver leaves no workers behind."""

import os
import signal
import threading
import time

from tokenbridge.infra.launching.local import DRIVER_VARIABLE

WATCH_SECONDS = 0.5


def main() -> None:
    """Run torchrun with this process's arguments."""
    driver = int(os.environ.pop(DRIVER_VARIABLE))
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()
    from torch.distributed.run import main as torchrun  # takes seconds, and the driver may end meanwhile

    torchrun()


def _end_with(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun then ends its workers


if __name__ == "__main__":
    main()
