"""What tests of transfers watch and start."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient

from tests.support.services import S3Place


@pytest.fixture
def place(s3_place: S3Place) -> S3Place:
    return s3_place


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each operation of S3 was really called."""
    counter: Counter[str] = Counter()
    real = BaseClient._make_api_call

    def counted(self: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:
        counter[operation] += 1
        return real(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", counted)
    return counter


SLOW_UPLOAD = """
import argparse, signal, time
from boto3.s3.transfer import TransferConfig
from botocore.client import BaseClient
import tokenbridge.infra.storage.transfer as transfer
from tokenbridge.base.program import program
from tokenbridge.infra.storage.cli import add_commands

def slowly(self, operation, arguments):
    time.sleep(0.5 if operation == "UploadPart" else 0)
    return call(self, operation, arguments)

signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells start their children without
call, BaseClient._make_api_call = BaseClient._make_api_call, slowly
transfer.SETTINGS = TransferConfig(max_concurrency=1)
parser = argparse.ArgumentParser()
add_commands(parser.add_subparsers())
options = parser.parse_args()
with program("storage"):
    options.command(options)
"""


def start_upload(folder: Path, place: S3Place) -> subprocess.Popen[str]:
    """The command in a process of its own, part after part with pauses, so that it can be caught in the middle."""
    command = [sys.executable, "-c", SLOW_UPLOAD, "upload", str(folder), place.uri]
    environment = os.environ | {"AWS_ENDPOINT_URL": place.server.endpoint}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder.parent, env=environment, **pipes)
