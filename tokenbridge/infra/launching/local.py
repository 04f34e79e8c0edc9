"""Workers on this machine: torchrun as a child process."""

import os

from tokenbridge.base.subprocesses import Command, StageFailedError
from tokenbridge.infra.launching.work import DRIVER_VARIABLE, Ending, Output, ParallelWork

HERE = "here"  # used in place of a job's id


def run(work: ParallelWork, output: Output) -> Ending:
    """Run the workers until they end. They also end when this process ends, even if it is killed."""
    work.prepare()
    environment = work.environment(os.cpu_count() or 1) | {DRIVER_VARIABLE: str(os.getpid())}
    command = Command(work.torchrun("--standalone"), work.root, environment)
    with work.log(HERE).open("a", buffering=1, encoding="utf-8") as log:

        def take(line: str) -> None:
            log.write(f"{line}\n")
            output.take(line)

        try:
            command.follow(take)
        except StageFailedError:
            return Ending(False, f"torchrun failed; its output: {work.log(HERE)}")
    return Ending(True, "torchrun ended")
