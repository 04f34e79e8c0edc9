"""One of the processes that a launcher starts for a stage, through torchrun.

``python -m tokenbridge.stages.worker STAGE ROOT WORK`` ends with 0 when the work is done. ``complete`` is in the work
folder then. It also ends with 0 when SIGUSR2 asked it to stop and it has saved a checkpoint. If no restart can help,
``failed.txt`` says why, and every restart ends at once.
"""

import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from tokenbridge.base.console import log_to_console
from tokenbridge.base.device import pick_device
from tokenbridge.base.distributed import Processes, joined
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text
from tokenbridge.base.protocols import Discard, Stop
from tokenbridge.base.subprocesses import end_with
from tokenbridge.config.params import load_params
from tokenbridge.engine.loop import InterruptedTrainingError
from tokenbridge.engine.optim import NonFiniteError
from tokenbridge.infra.launching.work import COMPLETE, FAILED
from tokenbridge.stages import import_stage
from tokenbridge.stages.context import METRICS, MetricFile, StageContext

logger = logging.getLogger(__name__)

IN_VAIN = (UserError, NonFiniteError)  # errors that a restart would raise again


@record  # torchrun reads the error of the worker that failed first
def main(arguments: list[str]) -> None:
    name, root, work = arguments[0], Path(arguments[1]), Path(arguments[2])
    end_with(signal.SIGKILL, os.getppid())  # workers have their own sessions: nothing else would end them
    log_to_console()
    asked = threading.Event()
    signal.signal(signal.SIGUSR2, lambda *_: asked.set())
    try:
        with joined() as processes:
            if any(processes.any((work / FAILED).exists())):  # some nodes may see the file late
                return
            share_work(name, root, work, processes, asked.is_set)
    except IN_VAIN as error:
        with suppress(OSError, UserError):  # such as a full disk
            atomic_write_text(work / FAILED, f"{error}\n")
        raise


def share_work(name: str, root: Path, work: Path, processes: Processes, stop: Stop) -> None:
    """Do this process's share of the stage. The first process marks the work as complete."""
    module = import_stage(name)
    tracker = MetricFile(work / METRICS) if processes.first else Discard()
    config = load_params(root)
    try:
        module.work(StageContext(name, config, root, work, tracker, pick_device(config.launcher), processes, stop))
    except InterruptedTrainingError as stopped:
        if processes.first:
            logger.info(stopped)
        return
    if processes.first:
        (work / COMPLETE).touch()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a normal exit could block: threads and process groups wait for the other ranks
