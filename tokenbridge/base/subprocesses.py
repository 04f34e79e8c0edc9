"""Commands that take hours: followed line by line, and ended together with every process that they started.

Nothing outlives the process that started it, even if that one is killed by SIGKILL. Linux ends a ``Command`` with its
parent. Processes below it, which other programs start, watch those above them (``end_with``).
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tokenbridge.base.environment import of_a_command
from tokenbridge.base.errors import WorkFailedError

# for stages to end by themselves. Prefect kills a cancelled flow after 30 seconds, and their end must be recorded first
END_SECONDS = 20
DRIVER_VARIABLE = "TOKENBRIDGE_DRIVER"  # tells the processes of a command the id of the process that started it
WATCH_SECONDS = 0.5
# asks Linux for SIGTERM when the parent, the first argument, ends (PR_SET_PDEATHSIG); then becomes the command
LEASH = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
sys.exit("its parent has ended") if os.getppid() != int(sys.argv[1]) else os.execvp(sys.argv[2], sys.argv[2:])"""


class StageFailedError(WorkFailedError):
    """A dvc command failed; the last lines of its output say why."""


class Command:
    """A running command in a process group of its own. When the command ends, for any reason, the group ends too.

    The command ends when the thread that made it has ended.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        interpreter_folder = str(Path(sys.executable).parent)  # dvc.yaml says `python`
        path = os.pathsep.join([interpreter_folder, os.environ.get("PATH", "")])
        self.words = " ".join(command[1:])
        leash = [sys.executable, "-ISc", LEASH, str(os.getpid())] if sys.platform == "linux" else []
        ours = {"PATH": path, "PYTHONUNBUFFERED": "1", DRIVER_VARIABLE: str(os.getpid())}
        self._process = subprocess.Popen(
            [*leash, *command],
            cwd=folder,
            env=of_a_command(os.environ) | dict(environment) | ours,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # dvc alone would leave its stage running
        )
        self._over = threading.Event()
        self._ending = threading.Thread(target=self._end_group, daemon=True)
        self._ending.start()

    def follow(self, on_line: Callable[[str], None]) -> None:
        """Pass on the output until the command and every process that it started have ended. An exception ends them.

        Raises:
            StageFailedError: if the command fails.
        """
        assert self._process.stdout is not None
        last: list[str] = []
        try:
            for line in self._process.stdout:
                last = [*last[-2:], line.rstrip()]
                on_line(line.rstrip())
            code = self._process.wait()
        except BaseException:
            self._process.terminate()
            try:
                self._process.communicate(timeout=END_SECONDS)  # returns when no process holds our pipe any more
            except subprocess.TimeoutExpired:
                self._signal_group("SIGKILL")
            raise
        finally:
            self._ending.join()
            self._over.set()
        if code:
            raise StageFailedError("\n".join(last) or f"`{self.words}` ended with code {code}")

    def stop(self) -> None:
        """End the command that another thread follows, and wait until that thread has seen the end."""
        self._process.terminate()
        self._over.wait(END_SECONDS)

    def _end_group(self) -> None:
        """Wait for dvc to end, then end a stage that it left running: the stage would hold our pipe and dvc's locks."""
        self._process.wait()
        self._signal_group("SIGTERM")

    def _signal_group(self, name: str) -> None:
        if hasattr(os, "killpg"):  # not on Windows, where a stage of a killed dvc has to be ended by hand
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, getattr(signal, name))


def lives(process: psutil.Process) -> bool:
    """Return whether a process has not ended. One whose exit code was not collected has ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_with(signum: signal.Signals, *above: int) -> None:
    """Send ``signum`` to this process when one of the processes ``above``, or the one that made its ``Command``, ends.

    Processes that this one starts are told nothing about that one.
    """
    driver = os.environ.pop(DRIVER_VARIABLE, None)
    watched = [*above, int(driver)] if driver else [*above]

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            processes = [psutil.Process(each) for each in watched]
            while all(map(lives, processes)):
                time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signum)

    if watched:
        threading.Thread(target=watch, name="watch of those above", daemon=True).start()
