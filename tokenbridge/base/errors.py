"""Mistakes that the user can fix; the message names what is wrong and what to change."""


class UserError(ValueError):
    """A mistake that is shown as its message alone, without a traceback."""
