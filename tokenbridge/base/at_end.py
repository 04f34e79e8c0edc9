"""What is done at the end of work, even if the work fails, without hiding why it failed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def at_end(action: Callable[[], object]) -> Iterator[None]:
    """Run ``action`` after the body, even if the body raises.

    If both fail, the body's error is raised, because it is the cause or came first. The other one becomes a note of it,
    which only tracebacks show. In a ``finally`` block, the error of ``action`` would replace that of the body.
    """
    try:
        yield
    except BaseException as error:
        try:
            action()
        except Exception as other:
            error.add_note(f"Afterwards there was another error: {type(other).__name__}: {other}")
        raise
    action()
