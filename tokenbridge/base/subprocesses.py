"""Commands that take hours: followed line by line, and ended together with every process that they started."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# for stages to end by themselves. Prefect kills a cancelled flow after 30 seconds, and their end must be recorded first
END_SECONDS = 20
MEETING_VARIABLE = "TOKENBRIDGE_MEETING"  # tells workers of one machine the file through which they find each other


class StageFailedError(RuntimeError):
    """A dvc command failed; the last lines of its output say why."""


class Command:
    """A running command in a process group of its own. When the command ends, for any reason, the group ends too."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        interpreter_folder = str(Path(sys.executable).parent)  # dvc.yaml says `python`
        path = os.pathsep.join([interpreter_folder, os.environ.get("PATH", "")])
        self.words = " ".join(command[1:])
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment | {"PATH": path, "PYTHONUNBUFFERED": "1"},
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
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=END_SECONDS)  # returns when no process holds our pipe any more
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
        if hasattr(os, "killpg"):  # not on Windows, where a stage of a killed dvc has to be ended by hand
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
