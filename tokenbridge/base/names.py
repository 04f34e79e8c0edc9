"""Names that other people gave to files, classes and columns, in the form in which this project stores them."""

import re
import unicodedata

LONE = "\ud800-\udfff"  # surrogates: Python's stand-ins for bytes of a name that are not UTF-8
BYTES = range(0xDC80, 0xDD00)  # the surrogates of single bytes


def stored_name(name: str | bytes) -> str:
    r"""Return the ``normalized`` name of a file, or of another place that takes any bytes.

    A byte that is not UTF-8 becomes ``\xNN``. A backslash that looks like the start of such an escape is doubled, so
    the original bytes can be restored.
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return normalized(re.sub(rf"\\(?=[\\xu{LONE}])", r"\\\\", text))


def normalized(text: str) -> str:
    """Return a text in Unicode's form NFC. Systems and archives write the same letters in different forms."""
    return unicodedata.normalize("NFC", printable(text))


def printable(text: str) -> str:
    """Return a text in which lone surrogates, which no file and no terminal takes, are escaped."""
    return re.sub(f"[{LONE}]", lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if code in BYTES else f"\\u{code:04x}"
