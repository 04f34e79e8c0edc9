"""How programs end: one line for each error and signal, and nothing is left running."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.patience import PATIENCE
from tokenbridge.base.errors import UserError, WorkFailedError
from tokenbridge.base.program import DEBUG_VARIABLE, program

# a driver, what it starts (as dvc: another's program, which starts a third and goes on after it), and the third
STAGE = """
import pathlib, signal, time
from tokenbridge.base.program import program
from tokenbridge.base.subprocesses import end_with
with program("stage"):
    end_with(signal.SIGTERM)
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        pathlib.Path("recorded").touch()
"""
MIDDLE = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {STAGE!r}]); time.sleep(60)"
DRIVER = f"""
import pathlib, sys
from tokenbridge.base.program import program
from tokenbridge.base.subprocesses import Command
with program("driver"):
    Command([sys.executable, "-c", {MIDDLE!r}], pathlib.Path(), {{}}).follow(lambda line: print(line, flush=True))
"""


@pytest.fixture
def driver(tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["env", "--default-signal", sys.executable, "-c", DRIVER],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_whatever_ends_a_driver_ends_all_that_it_started(
    driver: subprocess.Popen[str], signum: signal.Signals, tmp_path: Path
) -> None:
    assert driver.stdout is not None
    assert driver.stdout.readline() == "at work\n"
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) == 2
    driver.send_signal(signum)
    if signum == signal.SIGKILL:
        assert driver.wait() == -signum
    else:
        last = driver.communicate(timeout=PATIENCE)[0].splitlines()[-1]
        assert last == f"driver: ended by {signum.name}: what is done stays done; repeat the command to go on"
        assert driver.returncode == 128 + signum
        assert (tmp_path / "recorded").exists(), "it was not awaited"
    assert not psutil.wait_procs(started, timeout=PATIENCE)[1]
    assert (tmp_path / "recorded").exists()


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with program("test"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("x is 1: set 2"), "x is 1: set 2"),
        (WorkFailedError("last line"), "last line"),
        (ZeroDivisionError("a\n \udce9"), "ZeroDivisionError: a \\xe9 (log: "),
        (
            PermissionError(errno.EACCES, "Permission denied", ".work/lock"),
            f"you may not change or read {Path('.work/lock').absolute()}: ",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk of "),
        (FileNotFoundError(errno.ENOENT, "no temporary folder"), "FileNotFoundError: no temporary folder (log: "),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, program("test", 2):
        raise error
    assert stop.value.code == (1 if "log: " in line or isinstance(error, WorkFailedError) else 2)
    shown = capsys.readouterr().err
    assert shown.startswith(f"test: {line}")
    assert shown.count("\n") == 1
    if "log: " in line:
        log = Path(shown.split("log: ")[1].split(";")[0])
        assert "raise error" in log.read_text()
        log.unlink()


def test_a_temporary_folder_that_cannot_be_written_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with pytest.raises(SystemExit), program("test"):
        raise ZeroDivisionError
    shown = capsys.readouterr().err
    assert "no log, because the temporary folder cannot be written" in shown
    assert shown.count("\n") == 1


def test_the_traceback_is_printed_if_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    with pytest.raises(SystemExit), program("test"):
        raise UserError("x")
    assert "Traceback" in capsys.readouterr().err
