"""Which worker failed first, and the message about it."""

import json
import os
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tests.support.small_model import LAUNCHER
from tokenbridge.infra.launching.failure import first_failure, note_failure
from tokenbridge.infra.launching.work import JobState, LaunchError, Output, ParallelWork

NOW = 1_700_000_000.5


def failed(folder: Path, rank: int, error: str, seconds: float) -> ProcessFailure:
    """A worker that raised an error, as torch recorded it."""
    file = folder / f"error-{rank}.json"
    extra = {"py_callstack": f"Traceback (most recent call last):\n{error}\n", "timestamp": str(int(NOW + seconds))}
    file.write_text(json.dumps({"message": {"message": error, "extraInfo": extra}}))
    os.utime(file, (NOW + seconds, NOW + seconds))
    return ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(file))


def ended(signum: signal.Signals, seconds: float) -> ProcessFailure:
    """A worker that a signal ended, seen at some time."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=-signum, error_file="none")
    failure.timestamp = int(NOW + seconds)
    return failure


def message(folder: Path) -> str:
    work = ParallelWork((), folder, folder, LAUNCHER, "module")
    output = Output()
    for line in ("[rank 1] step 3", "[rank 2] step 4", "srun: error: no such node"):
        output.take(line)
    with pytest.raises(LaunchError) as error:
        work.judge(JobState("the job failed", ended=True), output)
    return str(error.value)


def test_the_rank_that_failed_first_is_quoted(tmp_path: Path) -> None:
    note_failure(tmp_path, {0: failed(tmp_path, 0, "RuntimeError: connection closed by peer", 0.2)})
    note_failure(tmp_path, {3: failed(tmp_path, 3, "ValueError: no", 0.1), 2: ended(signal.SIGTERM, 0)})
    lines = message(tmp_path).splitlines()
    assert lines[:2] == ["Traceback (most recent call last):", "ValueError: no"]
    assert lines[2].startswith("rank 3 on ")
    assert lines[2].endswith(" ended with exit code 1")
    assert lines[3:] == ["the job failed"]


def test_a_killed_rank_goes_before_those_that_missed_it(tmp_path: Path) -> None:
    note_failure(tmp_path, {0: failed(tmp_path, 0, "RuntimeError: connection closed by peer", 0.1)})
    note_failure(tmp_path, {1: ended(signal.SIGKILL, 0.6)})
    lines = message(tmp_path).splitlines()
    assert lines[0] == "step 3"
    assert lines[1].startswith("rank 1 on ")
    assert lines[1].endswith(" was ended by SIGKILL")


def test_where_no_rank_failed_the_last_lines_of_all_are_quoted(tmp_path: Path) -> None:
    assert message(tmp_path).splitlines()[-2:] == ["srun: error: no such node", "the job failed"]


def test_new_workers_begin_without_notes(tmp_path: Path) -> None:
    note_failure(tmp_path, {1: ended(signal.SIGKILL, 0)})
    ParallelWork((), tmp_path, tmp_path, LAUNCHER, "module").prepare()
    assert first_failure(tmp_path) is None
