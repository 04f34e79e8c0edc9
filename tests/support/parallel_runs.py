"""Runs a function of a test module in several processes over gloo, as torchrun would start them."""

import os
import subprocess
import sys

from tests.support.checkout import CHECKOUT
from tests.support.patience import PATIENCE


def run_processes(count: int, module: str, *arguments: str, code: int = 0) -> str:
    """Output of ``python -m module arguments`` as ``count`` processes, or as one that knows of no others."""
    command = [sys.executable, "-m", module, *arguments]
    if count > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
        command = [sys.executable, *launcher, module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == code, output
    return output
