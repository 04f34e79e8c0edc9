"""Mistakes that the user can mend; the message names what is wrong and what to change."""


class UserError(ValueError):
    """Shown as its message alone, without a traceback."""
