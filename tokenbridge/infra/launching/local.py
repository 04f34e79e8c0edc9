"""Workers on this machine: torchrun as a child process."""

import os
import subprocess
from contextlib import suppress

from tokenbridge.infra.launching.output import Output, how_ended
from tokenbridge.infra.launching.work import Ending, ParallelWork

AGENT = "tokenbridge.infra.launching.agent"
DRIVER_VARIABLE = "TOKENBRIDGE_DRIVER"  # holds our process id, which the agent watches
HERE = "here"  # used in place of a job's id
PATIENCE = 40  # seconds; torchrun gives its workers 30 to end by themselves


def run(work: ParallelWork, output: Output) -> Ending:
    """Run the workers until they end. They also end when this process ends, even if it is killed."""
    work.prepare()
    environment = work.environment(os.cpu_count() or 1) | {DRIVER_VARIABLE: str(os.getpid())}
    process = subprocess.Popen(
        work.torchrun("--standalone", agent=AGENT),
        cwd=work.root,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        with work.log(HERE).open("a", buffering=1, encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                output.take(line.rstrip())
        code = process.wait()
    finally:
        _end(process)
    return Ending(code == 0, f"the workers' torchrun {how_ended(code)}")


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()
