"""supervisord and its real configuration, with stubs instead of the real programs."""

import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from xmlrpc.client import Fault

import psutil
import pytest
from native import postgres, processes, team
from native.settings import SECRETS, Settings
from native.team import SERVICES, Team

from tests.pipeline.project import wait_for
from tests.stack.conftest import Stack
from tests.support.programs import require
from tokenbridge.base.errors import UserError

pytestmark = pytest.mark.cluster

PROGRAMS = ("postgres", "weed", "mlflow", "prefect")
SERVER = "echo umask=$(umask); env; echo ready; exec sleep 600"
# a worker and its flow; with an argument, the flow ignores SIGTERM. One write a line, for both write to one pipe
WORKER = """
import os, signal, sys, time
def stop(*_):
    os.write(1, f"{who} ended\\n".encode())
    sys.exit()
who = "flow" if os.fork() == 0 else "worker"
signal.signal(signal.SIGTERM, signal.SIG_IGN if who == "flow" and len(sys.argv) > 1 else stop)
os.write(1, f"{who} ready\\n".encode())
time.sleep(600)
"""


class Stubs:
    """A folder of programs that come before the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in PROGRAMS:
            self.write(name, SERVER)

    def write(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def write_worker(self, *arguments: str) -> None:
        script = self.folder / "worker.py"
        script.write_text(WORKER)
        self.write("prefect", f'exec {sys.executable} "{script}" {" ".join(arguments)}')


@pytest.fixture
def stubs(home: Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    stubs = Stubs(home / "stubs")
    real = processes.environment
    path = os.pathsep.join([str(stubs.folder), "/usr/bin", "/bin"])
    monkeypatch.setattr(processes, "environment", lambda settings: real(settings) | {"PATH": path})
    monkeypatch.setattr(postgres, "search_path", lambda: path)
    return stubs


@pytest.fixture
def settings(home: Path, stubs: Stubs) -> Iterator[Settings]:
    """A running supervisord, in a folder whose name has what its configuration could misread."""
    settings = Settings.load(home / "a b%20c;d")
    processes.start_supervisor(settings)
    yield settings
    Team(settings).down()


def log(name: str, settings: Settings) -> str:
    path = settings.home / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def start(name: str, settings: Settings, until: str) -> str:
    processes.start(name, settings)
    wait_for(lambda: until in log(name, settings), f"{until} in the log of {name}")
    return log(name, settings)


def pid(name: str, settings: Settings) -> int:
    return int(processes.processes(settings)[name]["pid"])


def test_every_service_gets_its_own_secrets_in_any_folder(settings: Settings) -> None:
    umask = os.umask(0)
    os.umask(umask)
    seen = {name: start(name, settings, "ready") for name in SERVICES}
    assert f"PGDATA={settings.home}/postgres\n" in seen["postgres"]
    assert settings["POSTGRES_PASSWORD"] not in seen["postgres"] + seen["seaweedfs"] + seen["worker"]
    assert f"AWS_SECRET_ACCESS_KEY={settings['S3_SECRET_KEY']}\n" in seen["seaweedfs"]
    assert f"PGPASSWORD={settings['POSTGRES_PASSWORD']}\n" in seen["mlflow"]
    assert settings["S3_SECRET_KEY"] not in seen["prefect"] + seen["postgres"]
    assert f"MLFLOW_TRACKING_PASSWORD={settings['MLFLOW_ADMIN_PASSWORD']}\n" in seen["worker"]
    assert f"PREFECT_HOME={settings.home}/worker\n" in seen["worker"]
    assert settings["MLFLOW_FORM_KEY"] not in "".join(text for name, text in seen.items() if name != "mlflow")
    assert "umask=0077\n" in seen["mlflow"]
    assert f"umask={umask:04o}\n" in seen["worker"]
    assert stat.S_IMODE((settings.home / "running/socket").stat().st_mode) == 0o700


def test_a_service_that_dies_is_started_again(settings: Settings) -> None:
    start("mlflow", settings, "ready")
    first = pid("mlflow", settings)
    psutil.Process(first).kill()
    wait_for(lambda: pid("mlflow", settings) not in (0, first), "new process")


def test_flows_are_ended_before_their_worker(settings: Settings, stubs: Stubs) -> None:
    """If the worker ended first, the flows would stay `Running` in Prefect's pages forever."""
    stubs.write_worker()
    start("worker", settings, "flow ready")
    Team(settings).down()
    assert log("worker", settings).splitlines()[-2:] == ["flow ended", "worker ended"]


def test_flows_that_do_not_end_are_killed(settings: Settings, stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FLOWS_END", 0.5)
    stubs.write_worker("stubborn")
    start("worker", settings, "flow ready")
    (flow,) = psutil.Process(pid("worker", settings)).children()
    Team(settings).down()
    assert not flow.is_running()


def test_a_service_that_ends_is_named_with_its_last_log_lines(settings: Settings, stubs: Stubs) -> None:
    stubs.write("mlflow", "echo no room on the disk; exit 3")
    processes.start("mlflow", settings)
    with pytest.raises(UserError, match=r"(?s)mlflow: ended by itself.*no room on the disk"):
        Team(settings).wait_until_healthy("mlflow")


def test_a_missing_program_is_named(settings: Settings, stubs: Stubs) -> None:
    (stubs.folder / "weed").unlink()
    processes.start("seaweedfs", settings)
    with pytest.raises(UserError, match=r"(?s)seaweedfs: ended by itself.*weed.*No such file"):
        Team(settings).wait_until_healthy("seaweedfs")


def test_a_service_that_ends_before_supervisord_answers_is_no_error_yet(settings: Settings, stubs: Stubs) -> None:
    """Supervisord answers with a fault then, but not always, so it is asked often."""
    (stubs.folder / "weed").unlink()
    for _ in range(30):
        processes.start("seaweedfs", settings)
    with pytest.raises(Fault, match="BAD_NAME"):
        processes.start("nobody", settings)


def test_a_service_that_is_never_healthy_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "PATIENCE", 0.5)
    start("mlflow", settings, "ready")
    monkeypatch.setitem(team.ADDRESSES, "mlflow", ["http://127.0.0.1:1/"])
    with pytest.raises(UserError, match="mlflow: not healthy"):
        Team(settings).wait_until_healthy("mlflow")


def test_a_path_that_is_too_long_for_a_socket_is_refused(home: Path, stubs: Stubs) -> None:
    with pytest.raises(UserError, match="set STACK_HOME to a shorter path"):
        processes.start_supervisor(Settings.load(home / ("x" * 100)))


def test_a_taken_port_is_named_by_its_setting_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in Stack(tmp_path).environment.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("S3_FILER_PORT", str(port))
        stack = Team(Settings.load(tmp_path))
        with pytest.raises(UserError, match=f"seaweedfs cannot have port {port}, .* set S3_FILER_PORT to another"):
            stack.up(["seaweedfs"])
    assert {stack.state(name) for name in SERVICES} == {"stopped"}
    assert {path.name for path in tmp_path.iterdir()} == {SECRETS}


def test_two_commands_do_not_meet(settings: Settings) -> None:
    with Team(settings).alone(), pytest.raises(UserError, match="another process is using"), Team(settings).alone():
        pass


def test_the_users_own_servers_are_out_of_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "search_path", lambda: "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    seen = processes.environment(Settings.load(tmp_path))
    assert "MLFLOW_TRACKING_URI" not in seen
    assert "AWS_PROFILE" not in seen
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"


def test_without_postgresql_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install postgresql"):
        postgres.search_path()


def test_data_of_another_postgresql_are_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("initdb")
    monkeypatch.setenv("POSTGRES_PORT", Stack(home).environment["POSTGRES_PORT"])
    settings = Settings.load(home / "stack")
    postgres.make_cluster(settings)
    (settings.home / "postgres/PG_VERSION").write_text("9\n")
    processes.start_supervisor(settings)
    try:
        processes.start("postgres", settings)
        with pytest.raises(UserError, match=r"(?s)postgres: ended by itself.*initialized by PostgreSQL version 9"):
            Team(settings).wait_until_healthy("postgres")
    finally:
        Team(settings).down()


def test_root_learns_where_postgresql_cannot_go(home: Path) -> None:
    """For everybody else PostgreSQL runs as themselves."""
    require("initdb")
    settings = Settings.load(home / "stack")
    home.chmod(0o700)
    if os.geteuid() == 0:
        with pytest.raises(UserError, match=r"who must be able to enter .* \(STACK_HOME\)"):
            postgres.make_cluster(settings)
    else:
        assert postgres.account() == {}
        postgres.make_cluster(settings)
    assert (settings.home / "postgres").exists() == (os.geteuid() != 0)
