"""Drives a clone of the project from outside, as a user would."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import yaml

from tests.support.patience import PATIENCE
from tokenbridge.base.files import sha256_tree
from tokenbridge.config.params import PARAMS_FILE
from tokenbridge.infra.dvc import read_outcome

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tokenbridge.infra.tracking.store import Store

T = TypeVar("T")
IDENTITY = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
STAGES = [
    "fetch",
    "classifier",
    "vae",
    "encode",
    "fit_quantizer",
    "reconstruct",
    "train@tiny",
    "generate@tiny",
    "evaluate@tiny",
]


class Project:
    """A clone; its own code wins over the installed one.

    ``launcher`` is no stage's parameter, so the frequent checkpoints change nothing but the moments at which a kill
    can be recovered from. 500 samples are two chunks.
    """

    launching = (
        "launcher.checkpoint_seconds=0.2",
        "launcher.checkpoint_share=1",
        "launcher.log_seconds=0.5",
        "launcher.threads=1",
    )
    overrides = ("experiment=smoke", "train.epochs=3", "generate.samples=500", *launching)
    settled = False  # whether the last command was a ``repro`` of these settings that ended well

    def __init__(self, root: Path) -> None:
        self.root = root
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "TOKENBRIDGE_"))}
        inherited.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of many processes compiles the clone's modules again
        inherited.pop("SHELL", None)  # dvc then takes /bin/sh, which may stay between it and its stage, unlike bash
        path = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
        self.environment = inherited | IDENTITY | {"PYTHONPATH": str(root), "PATH": path, "DVC_NO_ANALYTICS": "1"}

    def start(self, *command: str) -> subprocess.Popen[str]:
        self.settled = False
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, fails: bool = False) -> str:
        """Output of a command that must succeed, or must fail."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode != 0) == fails, output
        return output

    def start_repro(self, *overrides: str) -> subprocess.Popen[str]:
        return self.start("python", "-m", "tokenbridge.cli", "repro", *self.overrides, *overrides)

    def repro(self, *overrides: str, fails: bool = False) -> str:
        output = self.run("python", "-m", "tokenbridge.cli", "repro", *self.overrides, *overrides, fails=fails)
        self.settled = not overrides
        return output

    @contextmanager
    def by_hand(self, *overrides: str) -> Iterator[None]:
        """Within it, stages can be run without dvc, with these settings more; what they replaced is put back."""
        self.settle()
        params = self.root / PARAMS_FILE
        settings = params.read_text()
        self.run("python", "-m", "tokenbridge.cli", "params", *self.overrides, *overrides)
        yield
        self.run("dvc", "checkout", "--force")
        params.write_text(settings)
        self.settled = True

    def settle(self) -> None:
        """Bring everything up to date, whatever the last test left."""
        if not self.settled:
            self.repro()

    def forget(self, stage: str) -> None:
        """Make DVC run the stage again: nothing of it stays in the lock file and the run cache."""
        lock = self.root / "dvc.lock"
        content = yaml.safe_load(lock.read_text())
        content["stages"].pop(stage, None)
        command = f"python -m tokenbridge.stages {stage}"
        lock.write_text(yaml.safe_dump(content, sort_keys=False))
        for entry in list((self.root / ".dvc/cache/runs").glob("*/*/*")):
            if yaml.safe_load(entry.read_text())["cmd"] == command:
                shutil.rmtree(entry.parent)  # dvc trips over an empty one

    def digest(self, out: str) -> str:
        return sha256_tree(self.root / out)

    def runs(self, stage: str) -> "list[Run]":
        """MLflow's runs of a stage, oldest first."""
        store = self._store()
        return list(
            store.client.search_runs([store.experiment], f"tags.stage = '{stage}'", order_by=["attributes.start_time"])
        )

    def artifacts(self, run: "Run", folder: str | None = None) -> list[str]:
        """Paths of all files of an MLflow run."""
        paths: list[str] = []
        for item in self._store().client.list_artifacts(run.info.run_id, folder):
            paths += self.artifacts(run, item.path) if item.is_dir else [item.path]
        return paths

    def _store(self) -> "Store":
        from tokenbridge.infra.tracking.store import connect  # imports MLflow, which takes seconds

        return connect(self.root)


def outcomes(output: str) -> dict[str, str]:
    """What dvc said of each stage."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        found |= read_outcome(line)
    return found


def wait_for(ask: Callable[[], T | None], what: str) -> T:
    """The first true answer; asked often, for the things to catch are short."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.005)
    raise TimeoutError(f"no {what} within {PATIENCE} seconds")


def first_match(folder: Path, pattern: str, besides: Collection[Path] = ()) -> Path | None:
    """A path below ``folder``, where others come and go meanwhile."""
    with suppress(FileNotFoundError):
        return next((path for path in folder.glob(pattern) if path not in besides), None)
    return None


def descendant(process: subprocess.Popen[str], *words: str) -> psutil.Process | None:
    """The innermost process under ``process`` with these words in its command line."""
    found = None
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            command = child.cmdline()
        except psutil.Error:  # gone meanwhile
            continue
        if all(word in command for word in words):
            found = child
    return found
