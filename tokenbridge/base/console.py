"""The console handler of the programs of this project. Their modules log through ``logging``."""

import logging
import sys
from typing import TextIO

PACKAGE = "tokenbridge"


class Console(logging.StreamHandler[TextIO]):
    """A handler that writes each message as a line to whatever ``sys.stdout`` is at that time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


def log_to_console() -> None:
    """Show what the package logs, from level INFO on. Every program calls this once; further calls change nothing.

    A module of the package that runs as the program, as by ``python -m``, logs under the name ``__main__``.
    """
    program = getattr(sys.modules["__main__"], "__spec__", None)
    is_ours = program is not None and program.name.startswith(f"{PACKAGE}.")
    for logger in map(logging.getLogger, [PACKAGE, "__main__"] if is_ours else [PACKAGE]):
        if not any(isinstance(handler, Console) for handler in logger.handlers):
            logger.addHandler(Console())
            logger.setLevel(logging.INFO)
            logger.propagate = False  # Prefect and MLflow have handlers of their own, which would repeat each line
