"""How a flow ends on a mistake of the user or on a failed stage: with the message alone, without a traceback."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State
from prefect.states import Failed

from tokenbridge.base.console import log_to_console
from tokenbridge.base.errors import UserError
from tokenbridge.base.subprocesses import StageFailedError

P = ParamSpec("P")
R = TypeVar("R")


def failing_with_its_message(function: Callable[P, R]) -> Callable[P, R | State[Any]]:
    """Return a failed state with the message of an expected error. Prefect would log a traceback through our code."""

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R | State[Any]:
        log_to_console()
        try:
            return function(*arguments, **named)
        except (UserError, StageFailedError) as error:
            return Failed(message=str(error))

    return run
