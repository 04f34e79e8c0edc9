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
    """Show what the package logs, from level INFO on. Every program calls this once; further calls change nothing."""
    logger = logging.getLogger(PACKAGE)
    if not any(isinstance(handler, Console) for handler in logger.handlers):
        logger.addHandler(Console())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # Prefect and MLflow have handlers of their own, which would repeat each line
