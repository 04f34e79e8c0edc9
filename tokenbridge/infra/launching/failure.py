"""The worker that failed first: torch's record of it, from each node's agent to the driver."""

import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenbridge.base.files import read_json, write_json

if TYPE_CHECKING:  # torch takes seconds to import, and the agent must watch its parent before that
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

NOTES = "failure-*.json"  # in the work folder, one for each node


@dataclass(frozen=True)
class Failure:
    """The worker that failed first on one node."""

    time: float  # seconds since 1970
    rank: int
    ending: str  # such as "rank 3 on node7 was ended by SIGKILL"
    traceback: str  # empty if the worker raised no error


def note_failure(folder: Path, failures: Mapping[int, "ProcessFailure"]) -> None:
    """Write a node's first failure to ``folder``, given torchrun's failures by rank."""
    causes = {rank: each for rank, each in failures.items() if each.exitcode != -signal.SIGTERM}
    first = min((_failure(rank, each) for rank, each in (causes or failures).items()), key=lambda each: each.time)
    write_json(folder / NOTES.replace("*", str(first.rank)), asdict(first))


def _failure(rank: int, failure: "ProcessFailure") -> Failure:
    code = failure.exitcode
    how = f"was ended by {failure.signal_name()}" if code < 0 else f"ended with exit code {code}"
    ending = f"rank {rank} on {socket.gethostname()} {how}"
    if isinstance(failure.message, dict):  # the content of the error file, which the worker wrote when it failed
        time = Path(failure.error_file).stat().st_mtime
        return Failure(time, rank, ending, failure.message["extraInfo"]["py_callstack"])
    return Failure(failure.timestamp - 1, rank, ending, "")  # up to a second passes until torchrun sees it


def first_failure(folder: Path) -> Failure | None:
    """Return the earliest failure of all nodes: a failed worker makes the others fail, so it is the cause."""
    failures = [Failure(**read_json(note)) for note in folder.glob(NOTES)]
    return min(failures, key=lambda each: each.time, default=None)
