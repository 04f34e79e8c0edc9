"""Run torchrun on one node, end it with the process that started it, and note which worker failed first."""

import os
import signal
import sys
from pathlib import Path

from tokenbridge.base.program import signals_unwind
from tokenbridge.base.subprocesses import DRIVER_VARIABLE, end_with
from tokenbridge.infra.launching.failure import note_failure


def main(folder: Path) -> None:
    """Run torchrun with this process's arguments. If it fails, leave a note about the failure in ``folder``."""
    end_with(signal.SIGTERM, os.getppid())  # torchrun then ends its workers
    os.environ[DRIVER_VARIABLE] = str(os.getpid())  # for the workers
    # these imports take seconds, and the driver may end meanwhile
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    def interrupted(signum: int) -> SignalException:
        return SignalException(f"ended by signal {signum}", signal.Signals(signum))

    try:
        # torch's own handler raises at each signal. A further one would interrupt the end of the workers, and then the
        # threads that follow their output would never let this process end. torch keeps SIGQUIT, as it needs one signal
        with signals_unwind(interrupted):
            torchrun(["--signals-to-handle=SIGQUIT", *sys.argv[1:]])
    except ChildFailedError as error:
        note_failure(folder, error.failures)
        raise


if __name__ == "__main__":
    main(Path(sys.argv.pop(1)))
