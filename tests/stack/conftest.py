"""The stack's script is no package that is installed: its folder is found here."""

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.pipeline.fixtures import new_clone, shared_outs
from tests.pipeline.project import Project, wait_for
from tests.stack.team import LENIENT, State, run_deployment
from tests.support.checkout import CHECKOUT
from tests.support.programs import require
from tests.support.services import GRPC_OFFSET, free_ports

DOCKER = CHECKOUT / "docker"
sys.path.insert(0, str(DOCKER))

from native import processes  # noqa: E402 - found by the line above
from native.settings import Settings, read_env  # noqa: E402


class Stack:
    """``docker/stack.py`` over a folder and ports of its own.

    Attributes:
        environment: the ports; a test may add settings.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        names = [name for name in read_env(DOCKER / "stack.env") if name.endswith("_PORT")]
        ports = dict(zip(names, free_ports(len(names), beside=GRPC_OFFSET), strict=True))
        self.environment = {name: str(port) for name, port in ports.items()} | {"STACK_HOME": str(self.home)}

    def __call__(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DOCKER / "stack.py"), *arguments]
        environment = {**os.environ, **self.environment, **settings}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )

    def settings(self) -> Settings:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return Settings.load(self.home)

    def clients(self) -> dict[str, str]:
        """What ``source client.env`` sets."""
        return read_env_exports(self.home / "client.env")

    def processes(self) -> list[psutil.Process]:
        """Return supervisord, the services and what they started: all of them inherit the variable STACK_HOME."""
        return [process for process in psutil.process_iter() if self.owns(process)]

    def pid(self, service: str) -> int:
        """Return the number of the service's main process; 0 if the service does not run."""
        return int(processes.processes(self.settings())[service]["pid"])

    def main_process(self, service: str) -> psutil.Process:
        return psutil.Process(self.pid(service))

    def kill(self, service: str) -> None:
        """Kill a service at once, as when a machine loses power. It stays down until the next ``up``."""
        main = self.main_process(service)
        family = [main, *main.children(recursive=True)]
        processes.supervisor(self.settings()).stopProcess(service, False)  # else supervisor would start it again
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)

    def owns(self, process: psutil.Process) -> bool:
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False
        return process.pid != os.getpid() and any(word.startswith(str(self.home)) for word in words)


def read_env_exports(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    assert all(line.startswith("export ") for line in lines)
    return {name: value for name, _, value in (line.removeprefix("export ").partition("=") for line in lines)}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that PostgreSQL's user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="tokenbridge-stack-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """All services up, once for all tests."""
    require("initdb")
    folder = Path(tempfile.mkdtemp(prefix="tokenbridge-stack-"))
    folder.chmod(0o711)
    stack = Stack(folder)
    try:
        started = stack("up")
        assert started.returncode == 0, started.stdout + started.stderr
        yield stack
    finally:
        stack("down")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which every stage is up to date: with the outs of the one of tests/pipeline, if it makes them now."""
    project = new_clone(tmp_path_factory.mktemp("clone"))
    shared = shared_outs(tmp_path_factory)
    if shared is None or all("tests/pipeline" not in item.nodeid for item in request.session.items):
        project.repro()
        return project
    wait_for(shared.exists, "outs of tests/pipeline")
    shutil.copytree(shared, project.root, dirs_exist_ok=True)
    project.run("dvc", "checkout")
    project.settled = True
    return project


@pytest.fixture(scope="package")
def team(stack: Stack, project: Project) -> Iterator[Project]:
    """The project as a team has it: client.env sourced, flows deployed."""
    alone = project.environment
    project.environment = alone | stack.clients()
    project.run("prefect", "--no-prompt", "deploy", "--all")
    yield project
    project.environment = alone


@pytest.fixture(scope="package")
def retrained(team: Project) -> State:
    """Every stage is up to date already; MLflow and the registry are empty before."""
    return run_deployment(team, "retrain/retrain", overrides=list(team.overrides))


@pytest.fixture(scope="package")
def promoted(team: Project, retrained: State) -> State:
    """Version 1."""
    return run_deployment(team, "promote/promote", model="tiny", changes=LENIENT)


@pytest.fixture(scope="package")
def retrained_again(team: Project, promoted: State) -> State:
    """With the default's trunk and fewer epochs, so that the model is trained, and version 2 registered."""
    raster = ["train.epochs=2", "models.tiny.trunk=causal_raster", "generate.steps=null"]
    return run_deployment(team, "retrain/retrain", overrides=[*team.overrides, *raster])


@pytest.fixture
def client(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """With client.env sourced."""
    for name, value in stack.clients().items():
        monkeypatch.setenv(name, value)
    return MlflowClient(tracking_uri=stack.clients()["MLFLOW_TRACKING_URI"])


def answer(url: str, data: bytes | None = None, method: str | None = None, **headers: str) -> int:
    """Return the status that the server answers with."""
    request = urllib.request.Request(url, data, headers | {"Content-Type": "application/json"}, method=method)
    try:
        return int(urllib.request.urlopen(request, timeout=10).status)
    except urllib.error.HTTPError as error:
        return error.code


def experiments(stack: Stack) -> str:
    return stack.clients()["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments/search?max_results=1"


def log_run(client: MlflowClient, experiment: str) -> str:
    """Id of a run with a metric and an artifact."""
    run = client.create_run(client.create_experiment(experiment)).info.run_id
    client.log_metric(run, "loss", 0.5)
    client.log_text(run, "hello", "notes/hello.txt")
    return run
