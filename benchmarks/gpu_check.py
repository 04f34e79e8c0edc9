"""The tests and the short benchmark for a machine with one CUDA GPU: `make gpu-check`.

Runs the tests of tests/gpu, and writes the card, versions and results into docs/gpu.md. The page is written again after
each test, so it is right even if the check is killed. Ends with 0 if all tests passed, with 1 if not, and with 2 if
there is no GPU, or a package is missing or too old.
"""

import datetime
import faulthandler
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs/gpu.md"
RESULTS = "## Results\n"  # what follows on the page is replaced
NEEDED = ("torch", "diffusers", "safetensors", "numpy", "hydra-core", "omegaconf", "pydantic", "pyyaml", "pytest")
TORCH = (2, 11)  # the oldest version whose functions this code calls
# attention is last: an illegal memory access would fail every later test of this process
FILES = ("training", "sampling", "vae", "speed", "attention")
LIMIT = 600  # seconds
NO_GPU, FAILED, PASSED = 2, 1, 0


def main() -> int:
    versions = {name: found for name in NEEDED if (found := installed(name))}
    if missing := [name for name in NEEDED if name not in versions]:
        print(f"{sys.executable} lacks {', '.join(missing)}: install them, or name another Python by PYTHON=")
        return NO_GPU
    if tuple(int(part) for part in versions["torch"].split(".")[:2]) < TORCH:
        print(f"torch {versions['torch']} of {sys.executable} is too old: install torch {TORCH[0]}.{TORCH[1]} or newer")
        return NO_GPU
    import torch

    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} of {sys.executable} finds no CUDA GPU: nothing was checked")
        return NO_GPU
    return check(machine() | versions, PAGE)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, str]:
    """Return what is checked, and on what."""
    import torch

    card = torch.cuda.get_device_properties(0)
    return {
        "GPU": f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}",
        "commit": output("git", "-C", str(PROJECT), "describe", "--always", "--dirty"),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "CUDA, cuDNN, NCCL": f"{torch.version.cuda}, {torch.backends.cudnn.version()}, {torch.cuda.nccl.version()}",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.release()}",
    }


def output(*command: str) -> str:
    """Return the first line that the command prints, or "unknown"."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (ended.stdout.splitlines() or ["unknown"])[0]


def check(facts: dict[str, str], page: Path) -> int:
    """Run the tests, and write ``page``. Return the exit code."""
    import pytest

    stderr = os.dup(2)  # pytest captures what has number 2
    faulthandler.enable(stderr)
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=stderr)
    results = Results(lambda text: write(page, facts, text))
    results.publish_rows("did not finish")
    folder = PROJECT / "tests/gpu"
    # neither the other tests' conftest.py, whose packages may be missing here, nor what else is installed for pytest
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    own = ["-p", "no:cacheprovider", "-p", "no:faulthandler"]  # pytest's own would cancel the time limit above
    options = [f"--confcutdir={folder}", f"--rootdir={PROJECT}", *own, "-m", "gpu", "-v"]
    code = pytest.main([*options, *(str(folder / f"test_{name}.py") for name in FILES)], plugins=[results])
    faulthandler.cancel_dump_traceback_later()
    results.end(passed=code == 0)
    print(f"{page} written")
    return PASSED if code == 0 else FAILED


def write(page: Path, facts: dict[str, str], results: str) -> None:
    """Replace the results on ``page``."""
    top = page.read_text(encoding="utf-8").partition(RESULTS)[0]
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    text = f"{top}{RESULTS}\n{results}\n| what | version |\n|---|---|\n{rows}"
    page.write_text(text, encoding="utf-8")


class Results:
    """A plugin of pytest that passes a table of the tests to ``publish`` after each of them."""

    def __init__(self, publish: Callable[[str], None]) -> None:
        self.publish, self.began = publish, time.monotonic()
        self.rows: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")
        why = next((line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")), "")
        measured = "; ".join(f"{key}: {value}" for key, value in report.user_properties)
        cell = " ".join(filter(None, [measured, why])).replace("|", "/")
        self.rows[name] = f"| {name} | {report.outcome} | {report.duration:.0f} | {cell} |"
        self.publish_rows("did not finish")

    def end(self, *, passed: bool) -> None:
        self.publish_rows("passed" if passed else "FAILED")

    def publish_rows(self, verdict: str) -> None:
        today = datetime.datetime.now(datetime.UTC).date()
        head = f"{today}: **{verdict}**, in {time.monotonic() - self.began:.0f} seconds.\n"
        table = "\n".join(["| test | result | seconds | measured |", "|---|---|---|---|", *self.rows.values()])
        self.publish(f"{head}\n{table}\n")


if __name__ == "__main__":
    sys.exit(main())
