"""One of the processes that a launcher starts for a stage, by torchrun.

``python -m tokenbridge.worker STAGE ROOT WORK`` ends with 0 when the work is done (``complete`` is in the work folder
then), and when it was asked to stop by SIGUSR2 and has saved a checkpoint. Where trying again is of no use,
``failed.txt`` says why, and every restart ends at once.
"""

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from tokenbridge.device import pick_device
from tokenbridge.errors import UserError
from tokenbridge.launching.work import COMPLETE, FAILED
from tokenbridge.loop import InterruptedTrainingError
from tokenbridge.optim import NonFiniteError
from tokenbridge.params import load_params
from tokenbridge.processes import joined
from tokenbridge.stages.job import METRICS, Job, MetricFile

WATCH_SECONDS = 1.0
IN_VAIN = (UserError, NonFiniteError)  # would come again


class Silent:
    """A metric sink of a process that is not the first."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None: ...


def main(arguments: list[str]) -> None:
    name, root, work = arguments[0], Path(arguments[1]), Path(arguments[2])
    if (work / FAILED).exists():
        return
    end_with_parent()
    asked = threading.Event()
    signal.signal(signal.SIGUSR2, lambda *_: asked.set())
    module = importlib.import_module(f"tokenbridge.stages.{name.partition('@')[0]}")
    with joined() as processes:
        tracker = MetricFile(work / METRICS) if processes.first else Silent()
        try:
            config = load_params(root)
            device = pick_device(config.launcher)
            module.work(Job(name, config, root, work, tracker, device, processes, asked.is_set))
        except InterruptedTrainingError as stopped:
            if processes.first:
                print(stopped, flush=True)
            return
        except IN_VAIN as error:
            (work / FAILED).write_text(f"{error}\n")
            raise
        if processes.first:
            (work / COMPLETE).touch()


def end_with_parent() -> None:
    """Torchrun's processes have sessions of their own: where it is killed, nothing else would end them."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
