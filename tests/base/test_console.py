"""What the package logs is shown by its programs, and by nothing else."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tokenbridge.base.console import log_to_console


@pytest.fixture
def main_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("__main__")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


def test_each_line_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_console()
    log_to_console()
    logging.getLogger("tokenbridge.somewhere").info("a line")
    assert capsys.readouterr().out == "a line\n"


def test_a_module_of_the_package_that_is_the_program_is_shown(
    main_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = SimpleNamespace(name="tokenbridge.stages.classifier")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec, raising=False)
    log_to_console()
    main_logger.info("a line")
    assert capsys.readouterr().out == "a line\n"


def test_other_peoples_programs_keep_their_logger() -> None:
    program = (
        "import logging; from tokenbridge.base.console import log_to_console; log_to_console()\n"
        "print(logging.getLogger('__main__').handlers, logging.getLogger('__main__').propagate)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "[] True\n"


def test_importing_the_package_shows_nothing() -> None:
    program = "import logging, tokenbridge.base.console; print(logging.getLogger('tokenbridge').handlers)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"
