"""Two processes on this machine: one is killed, the driver is ended, a rank fails."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.infra.launching.driving import command, read_until, rest
from tests.infra.launching.small_worker import SAVE_STEPS, STEPS, undisturbed
from tests.pipeline.project import wait_for
from tests.support.patience import PATIENCE
from tokenbridge.base.files import read_json

pytestmark = pytest.mark.pipeline
HELD_AT = STEPS // 2 // SAVE_STEPS * SAVE_STEPS  # the last step that was saved before the hold
TWO = {"processes": 2, "max_restarts": 1}


def start(work: Path, *arguments: object, **settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(work, *arguments, **(TWO | settings)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def saved_step(work: Path) -> int:
    state = work / "state.json"
    return read_json(state)[0] if state.exists() else 0


def process_id(output: str) -> int:
    """The id in the last such line."""
    return int(re.findall(r"as process (\d+)", output)[-1])


def test_a_killed_worker_takes_all_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    driver = start(tmp_path)
    read_until(driver, "starts at step 0")
    output = read_until(driver, "starts at step 0")
    wait_for(lambda: saved_step(tmp_path) == HELD_AT, "last checkpoint before the hold")
    os.kill(process_id(output), signal.SIGKILL)
    (tmp_path / "hold").unlink()
    output += rest(driver)
    assert f"[rank 0] starts at step {HELD_AT} " in output
    assert f"[rank 1] starts at step {HELD_AT} " in output
    assert f"ends with {undisturbed()!r}" in output
    assert driver.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_driver_leaves_no_process(tmp_path: Path, signum: signal.Signals) -> None:
    (tmp_path / "hold").touch()
    driver = start(tmp_path)
    read_until(driver, "[rank 1] starts at step 0")
    processes = psutil.Process(driver.pid).children(recursive=True)
    assert len(processes) == 3, "torchrun and two workers"
    heard = [link.laddr.ip for each in processes for link in each.net_connections("all") if link.status == "LISTEN"]
    assert {*heard} <= {"127.0.0.1"}, "no other machine can reach them"
    driver.send_signal(signum)
    wait_for(lambda: not psutil.wait_procs(processes, timeout=0)[1], "end of the processes")
    assert driver.wait() == (128 + signum if signum == signal.SIGTERM else -signum)


def test_torchrun_ends_its_workers_although_further_signals_come(tmp_path: Path) -> None:
    """Linux may send several when a driver is killed, one for each of its threads."""
    (tmp_path / "hold").touch()
    driver = start(tmp_path)
    read_until(driver, "[rank 1] starts at step 0")
    (torchrun,) = psutil.Process(driver.pid).children()
    workers = torchrun.children()
    for worker in workers:
        worker.suspend()  # so that torchrun has to wait for their end
    for _ in range(3):
        torchrun.terminate()
        time.sleep(0.5)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):  # on a slow machine, torchrun no longer waits, and kills it
            worker.resume()
    wait_for(lambda: not psutil.wait_procs([torchrun, *workers], timeout=0)[1], "end of the processes")
    assert driver.wait(PATIENCE) == 1


@pytest.mark.parametrize(
    ("mischief", "message"),
    [
        (
            "fail",
            r"driver: (.*\n)+ArithmeticError: the numbers do not add up\nrank 1 on \S+ (ended with|was ended by) ",
        ),
        ("mistake", r"^driver: this cannot work: choose smaller numbers$"),
    ],
    ids=["fail", "mistake"],
)
def test_a_failing_rank_is_reported(tmp_path: Path, mischief: str, message: str) -> None:
    driver = start(tmp_path, mischief, max_restarts=0)
    output = rest(driver)
    assert re.search(message, output, re.MULTILINE), output
    assert driver.returncode == 1
