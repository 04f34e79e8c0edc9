"""``python -m tokenbridge.stages``."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT

STAGE = [sys.executable, "-X", "importtime", "-m", "tokenbridge.stages", "train@tiny"]
START = """
import signal, sys, os
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_during_the_imports_shows_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START, *STAGE]  # some shells let their children ignore SIGINT
    stage = subprocess.Popen(
        command, cwd=tmp_path, env={"PYTHONPATH": str(CHECKOUT)}, stderr=subprocess.PIPE, text=True
    )
    assert stage.stderr is not None
    imported = iter(stage.stderr)
    next(line for line in imported if "tokenbridge.base" in line)
    stage.send_signal(signal.SIGINT)
    assert not [line for line in imported if "import time:" not in line]
    assert stage.wait() == -signal.SIGINT
