"""Workers on this machine: torchrun as a child process."""

import socket

from tokenbridge.base.environment import MEETING_VARIABLE
from tokenbridge.base.machine import CORES
from tokenbridge.base.subprocesses import Command, StageFailedError
from tokenbridge.infra.launching.work import MEETING, JobState, Output, ParallelWork

HERE = "here"  # used in place of a job's id
# no process listens where other machines could reach it: torch's own stores would, so the processes meet in files
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
LOOPBACK = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def run(work: ParallelWork, output: Output) -> JobState:
    """Run the workers until they end. They also end when this process ends, even if it is killed."""
    work.prepare()
    meeting = work.folder / MEETING
    ours = {MEETING_VARIABLE: str(meeting)} | dict.fromkeys(INTERFACES, LOOPBACK)
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", "--rdzv-conf=store_type=file")
    command = Command(work.torchrun(*rendezvous, "--local-addr=127.0.0.1"), work.root, work.environment(CORES) | ours)
    with work.log(HERE).open("a", buffering=1, encoding="utf-8") as log:

        def take(line: str) -> None:
            log.write(f"{line}\n")
            output.take(line)

        try:
            command.follow(take)
        except StageFailedError:
            return JobState(f"torchrun failed; its output: {work.log(HERE)}", ended=True)
    return JobState("torchrun ended", ended=True, ok=True)
