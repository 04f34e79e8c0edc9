"""Names of strangers: one form for the same letters, and bytes that can be restored."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenbridge.base.errors import UserError
from tokenbridge.base.names import stored_name

PIECES = st.sampled_from(["a", "\\", "x", "u", "e9", "é", "e\u0301", "\n"]).map(str.encode) | st.binary(max_size=3)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("café", "café"),
        (unicodedata.normalize("NFD", "café"), "café"),
        ("café".encode("latin-1"), r"caf\xe9"),
        (r"caf\xe9", r"caf\\xe9"),
        (r"a\b", r"a\b"),
        ("half a pair \ud83d", r"half a pair \ud83d"),
    ],
)
def test_a_name_has_one_form(name: str | bytes, stored: str) -> None:
    assert stored_name(name) == stored


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(PIECES).map(b"".join))
def test_bytes_can_be_restored(name: bytes) -> None:
    stored = stored_name(name)
    assert unicodedata.is_normalized("NFC", stored)
    restored = re.sub(
        rb"\\\\|\\x(..)", lambda found: bytes.fromhex(found[1].decode()) if found[1] else b"\\", stored.encode()
    )
    text, wanted = (each.decode("utf-8", "surrogateescape") for each in (restored, name))
    assert unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", wanted)


def test_an_error_message_can_be_printed() -> None:
    assert str(UserError("caf\udce9.png is broken")).encode() == rb"caf\xe9.png is broken"
