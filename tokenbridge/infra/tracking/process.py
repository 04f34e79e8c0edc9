"""The process that talks to MLflow, so that a run does not wait until MLflow is imported, which takes two seconds.

``python -m tokenbridge.infra.tracking.process DESCRIPTOR MODULE ...`` imports the modules, then answers the calls of
the ``MLflowProcess`` that started it.
"""

import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pkgutil import resolve_name
from typing import Any, Self

from tokenbridge.base.console import log_to_console
from tokenbridge.base.errors import WorkFailedError
from tokenbridge.base.imports import quick_imports
from tokenbridge.base.program import explain

SYNC = "tokenbridge.infra.tracking.sync"


class MLflowProcess:
    """A process that imports MLflow and ``modules`` at once, then calls functions. It ends with its parent."""

    def __init__(self, *modules: str) -> None:
        self._ours, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-Pm", __spec__.name, str(theirs.fileno()), SYNC, *modules]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            # in its own session: Ctrl-C must not end it before the last records are sent
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True
            )
        self._thread = ThreadPoolExecutor(1)  # one call at a time, and no signal interrupts it half-way

    def call(self, function: str, *arguments: Any) -> Any:
        """Return the result of a function, named ``module:function``, that the process calls.

        Raises:
            WorkFailedError: with what the function raised, or if the process was killed.
        """
        result = self._thread.submit(self._exchange, function, arguments).result()
        if isinstance(result, WorkFailedError):
            raise result
        return result

    def _exchange(self, function: str, arguments: tuple[Any, ...]) -> Any:
        try:
            self._ours.send((function, arguments))
            return self._ours.recv()
        except (EOFError, OSError):
            return WorkFailedError("the process that talks to MLflow has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process after its present call. A second call does nothing."""
        self._thread.shutdown()
        self._process.terminate()
        self._process.wait()
        self._ours.close()


def main(descriptor: str, *modules: str) -> None:
    log_to_console()
    with quick_imports():
        for module in modules:
            importlib.import_module(module)
    with Connection(int(descriptor)) as calls, suppress(EOFError):
        while True:
            function, arguments = calls.recv()
            try:
                result = resolve_name(function)(*arguments)
            except Exception as error:
                result = WorkFailedError(explain(error))
            calls.send(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
