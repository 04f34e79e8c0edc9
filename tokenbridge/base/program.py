"""How the programs of this project end: with one line for each error and signal, after everything they hold is let go.

A traceback goes into a file of the temporary folder. Set TOKENBRIDGE_DEBUG=1 to print it.
"""

import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tokenbridge.base.console import log_to_console
from tokenbridge.base.environment import prepare_environment
from tokenbridge.base.errors import UserError, WorkFailedError
from tokenbridge.base.files import explain_disk_error
from tokenbridge.base.names import printable

DEBUG_VARIABLE = "TOKENBRIDGE_DEBUG"
FAILURE_CODE = 1
MISTAKE_CODE = 2  # the exit code of stages for wrong settings or files of the user: a retry would fail too
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
LONGEST = 500  # characters of an unexpected error's message


class InterruptedBySignalError(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP. Raised in the main thread, it runs every ``finally`` block on its way."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.code = 128 + signum


@contextmanager
def program(name: str, mistake_code: int = FAILURE_CODE) -> Iterator[None]:
    """Run the body as a program, or as the part of it that may fail. Every error ends the process with one line.

    Args:
        name: what the line begins with.
        mistake_code: the exit code for a mistake of the user. A signal's code is 128 plus its number, as in shells.
    """
    prepare_environment()
    log_to_console()
    try:
        with signals_unwind(), explain_disk_error(Path.cwd()):
            yield
    except InterruptedBySignalError as interrupted:
        _end(f"{name}: {interrupted}: what is done stays done; repeat the command to go on", interrupted.code)
    except Exception as error:
        _end(f"{name}: {explain(error)}", mistake_code if isinstance(error, UserError) else FAILURE_CODE)


def explain(error: Exception) -> str:
    """Return what to show of an error: its message alone if it is an expected one, else one line that names a log."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    if isinstance(error, UserError | WorkFailedError):
        return printable(str(error))
    if isinstance(error, OSError) and error.strerror:
        remedy = ": choose a shorter name" if error.errno == errno.ENAMETOOLONG else ""
        said = f"{error.filename or type(error).__name__}: {error.strerror}{remedy}"
    else:
        said = f"{type(error).__name__}: {error}"
    said = " ".join(printable(said).split())[:LONGEST]
    return f"{said} ({_log(error)}; {DEBUG_VARIABLE}=1 prints the traceback)"


def _log(error: Exception) -> str:
    text = printable("".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="tokenbridge-", suffix=".log", delete=False
        ) as log:
            log.write(text)
    except OSError as problem:
        return f"no log, because the temporary folder cannot be written: {problem.strerror}"
    return f"log: {log.name}"


def _end(line: str, code: int) -> None:
    with suppress(OSError):  # a terminal that was closed
        print(line, file=sys.stderr, flush=True)
    ending = SystemExit(line)  # for those who call a program as a function
    ending.code = code
    raise ending


@contextmanager
def signals_unwind(error: Callable[[int], BaseException] = InterruptedBySignalError) -> Iterator[None]:
    """Raise an exception for the first signal that asks the process to end. Ignore the others, as cleaning up goes on.

    There may be several even for one cause: Linux sends PR_SET_PDEATHSIG for each thread of a parent that is killed.
    Signals that are ignored already stay so, as under nohup. Only the main thread can do this.

    Args:
        error: makes the exception from the signal's number.
    """

    def leave(signum: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise error(signum)

    main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in SIGNALS if main}
    before = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for each in before:
        signal.signal(each, leave)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
