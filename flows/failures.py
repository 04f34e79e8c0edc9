"""How a flow ends on an error: with one line, without a traceback."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State
from prefect.states import Failed

from tokenbridge.base.console import log_to_console
from tokenbridge.base.files import explain_disk_error
from tokenbridge.base.program import explain

P = ParamSpec("P")
R = TypeVar("R")


def failing_with_its_message(function: Callable[P, R]) -> Callable[P, R | State[Any]]:
    """Return a failed state with an error's message. Prefect would log a traceback through our code."""

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R | State[Any]:
        log_to_console()
        try:
            with explain_disk_error(Path.cwd()):
                return function(*arguments, **named)
        except Exception as error:
            return Failed(message=explain(error))

    return run
