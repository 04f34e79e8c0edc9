"""Errors whose message says all, so that it is shown alone, without a traceback."""

from tokenbridge.base.names import printable


class UserError(ValueError):
    """A mistake that the user can fix. The message names what is wrong and what to change; any terminal can show it."""

    def __str__(self) -> str:
        return printable(super().__str__())


class WorkFailedError(RuntimeError):
    """Another process failed. The message says how, with the last lines of its output."""
