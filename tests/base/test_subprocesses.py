import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tokenbridge.base.subprocesses import Command, StageFailedError

# a stage that dvc leaves when it is ended, and which takes its time to end well
STAGE = """
import pathlib, signal, sys, time
def leave(*_):
    time.sleep(0.5)
    pathlib.Path("recorded").touch()
    sys.exit()
signal.signal(signal.SIGTERM, leave)
print("at work", flush=True)
time.sleep(60)
"""
DVC = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STAGE!r}])"


def start(folder: Path, code: str, **environment: str) -> Command:
    return Command([sys.executable, "-c", code], folder, environment)


def test_every_line_is_passed_on(tmp_path: Path) -> None:
    lines: list[str] = []
    start(tmp_path, "import os; print(os.getcwd()); print(os.environ['WHAT'])", WHAT="ever").follow(lines.append)
    assert lines == [str(tmp_path), "ever"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; [print(n) for n in range(9)]; sys.exit(1)", "^6\n7\n8$"),
        ("import os; os._exit(3)", "with code 3$"),
    ],
)
def test_a_failure_says_the_last_lines(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(StageFailedError, match=message):
        start(tmp_path, code).follow(lambda _: None)


def test_what_interrupts_us_ends_it_and_waits_until_all_that_it_started_has_ended(tmp_path: Path) -> None:
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, DVC).follow(interrupt)
    assert (tmp_path / "recorded").exists()


def test_another_thread_can_stop_it(tmp_path: Path) -> None:
    at_work = threading.Event()
    command = start(tmp_path, DVC)

    def follow() -> None:
        with pytest.raises(StageFailedError):
            command.follow(lambda _: at_work.set())

    thread = threading.Thread(target=follow)
    thread.start()
    assert at_work.wait(30)
    command.stop()
    assert (tmp_path / "recorded").exists()
    thread.join(30)
    assert not thread.is_alive()
    command.stop()  # nothing is left to end


def test_a_command_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    def kill(_line: str) -> None:
        (dvc,) = (child for child in psutil.Process().children() if str(tmp_path) == child.cwd())
        dvc.kill()

    began = time.monotonic()
    with pytest.raises(StageFailedError, match="at work"):
        start(tmp_path, DVC).follow(kill)
    assert time.monotonic() - began < 50, "the stage had to end by itself"
    assert (tmp_path / "recorded").exists()
