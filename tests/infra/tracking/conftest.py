"""Stores, a pipeline to log, and processes that are killed at the end of a test."""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.checkout import CHECKOUT
from tests.support.services import Server, free_ports
from tests.support.small_model import QUANTIZER, random_model
from tests.support.small_pipeline import build_pipeline
from tokenbridge.infra.tracking.store import Store, connect
from tokenbridge.tokenizer.fitting import fit_quantizer

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    """A project folder with an empty MLflow store."""
    shutil.copy2(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def store(root: Path) -> Store:
    return connect(root)


@pytest.fixture
def new_database(monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> None:
    """Copy the database that a test needs anew, because creating one takes seconds."""

    def copy(root: Path) -> None:
        if not (root / "mlflow.db").exists():
            shutil.copy2(empty_database, root / "mlflow.db")

    monkeypatch.setattr("tokenbridge.infra.tracking.store.create_database", copy)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of random weights: 8 x 8 images of three classes, by 16 positions."""
    latents = torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("models") / "micro"
    build_pipeline(random_model(), fit_quantizer(latents, QUANTIZER)).save_pretrained(folder)
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run Python code in a process of its own, which is killed at the end of the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()


class MlflowServer(Server):
    """A command of MLflow that serves.

    Args:
        health: path that answers when the server is up.
        environment: variables besides those that this process has now.
    """

    def __init__(self, folder: Path, *command: str, health: str, **environment: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        super().__init__(folder, os.environ | {"PATH": path} | environment)
        port = str(free_ports(1)[0])
        self.address = f"http://127.0.0.1:{port}"
        self.health = f"{self.address}/{health}"
        self.command = [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", port]

    def call(self) -> None:
        urllib.request.urlopen(self.health, timeout=5).close()
