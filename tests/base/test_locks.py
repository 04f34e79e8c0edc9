"""Locks between processes."""

import threading
from pathlib import Path

import pytest

from tokenbridge.base.errors import UserError
from tokenbridge.base.locks import locked


def test_who_does_not_wait_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "folder/lock"
    refused = pytest.raises(UserError, match="another process is using it")
    with locked(lock, "it"), refused, locked(lock, "it", wait=False):
        pytest.fail("it was let in")
    with locked(lock, "the pictures", wait=False):
        pass


def test_a_waiting_process_says_so_and_is_let_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, let_in = threading.Event(), threading.Event()

    def wait() -> None:
        held.wait()
        with locked(tmp_path / "lock", "the pictures"):
            let_in.set()

    thread = threading.Thread(target=wait)
    thread.start()
    with locked(tmp_path / "lock", "the pictures"):
        held.set()
        assert not let_in.wait(0.3)
    assert let_in.wait(30)
    thread.join()
    assert capsys.readouterr().out == "another process is using the pictures: waiting for it to end\n"
