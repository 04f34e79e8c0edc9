"""The process that imports MLflow for another one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tokenbridge.base.errors import WorkFailedError
from tokenbridge.infra.tracking.process import MLflowProcess


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[MLflowProcess]:
    monkeypatch.setattr("tokenbridge.infra.tracking.process.SYNC", "json")  # imported at once
    with MLflowProcess() as process:
        yield process


def test_it_calls_functions_elsewhere_until_the_block_ends(process: MLflowProcess) -> None:
    child = psutil.Process(process.call("os:getpid"))
    assert child.ppid() == os.getpid()
    assert process.call("os.path:join", "a", "b") == "a/b"
    with process:
        pass
    assert not child.is_running()


def test_an_error_there_is_one_here_and_the_next_call_works(process: MLflowProcess) -> None:
    with pytest.raises(WorkFailedError, match="No such file or directory"):
        process.call("os:stat", "/nowhere")
    assert process.call("os:getcwd") == str(Path.cwd())


def test_a_killed_process_is_reported(process: MLflowProcess) -> None:
    os.kill(process.call("os:getpid"), signal.SIGKILL)
    with pytest.raises(WorkFailedError, match="has ended"):
        process.call("os:getpid")


def test_it_ends_with_the_process_that_started_it() -> None:
    code = "import os; from tokenbridge.infra.tracking.process import MLflowProcess as P; p = P()"
    code += "; print(p.call('os:getpid'), flush=True); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 9
    psutil.wait_procs([psutil.Process(pid) for pid in [int(done.stdout)] if psutil.pid_exists(pid)], timeout=5)
    assert not psutil.pid_exists(int(done.stdout))
