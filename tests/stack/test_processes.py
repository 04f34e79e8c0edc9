"""Services as processes, without the real ones."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from native import postgres, processes
from native.services import Service
from native.settings import Settings
from native.team import Team

from tests.support.programs import require
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json, write_json

Make = Callable[..., Service]
# prints the number of a child of its own that outlives it unless killed, and ignores SIGTERM
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


# says what it was told, after its child
POLITE = """
import signal, subprocess, sys, time
def tell(who):
    signal.signal(signal.SIGTERM, lambda *_: (print(who, "ended", flush=True), sys.exit()))
tell("parent")
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"])
else:
    tell("child")
    print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(tmp_path)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(postgres, "program_folder", lambda: tmp_path)  # none of PostgreSQL's programs is run

    def make(code: str, **changes: object) -> Service:
        given = {"name": "demo", "environment": {}, "check": ["true"], "patience": 5.0, "after": [], "ports": {}}
        given |= {"command": [sys.executable, "-c", code], "stop_signal": "SIGTERM", "grace": 0.5}
        return Service(**(given | changes))

    return make


def wait_for(path: Path) -> str:
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.02)
    return path.read_text()


def test_what_ignores_the_signal_is_killed_with_all_that_it_started(settings: Settings, service: Make) -> None:
    stubborn = service(STUBBORN)
    parent = processes.start(stubborn, settings).process
    child = psutil.Process(int(wait_for(processes.log_path("demo", settings))))
    assert processes.stop(stubborn, settings)
    assert not processes.lives(parent)
    assert not processes.lives(child)
    assert not processes.stop(stubborn, settings)


def test_flows_are_ended_before_their_worker(settings: Settings, service: Make, tmp_path: Path) -> None:
    """A worker that is asked first leaves them `Running` in Prefect's pages for ever."""
    script = tmp_path / "polite.py"
    script.write_text(POLITE)
    worker = service("", name="worker", command=[sys.executable, str(script)], grace=5.0)
    processes.start(worker, settings)
    wait_for(processes.log_path("worker", settings))
    assert processes.stop(worker, settings)
    assert processes.log_path("worker", settings).read_text() == "ready\nchild ended\nparent ended\n"


def test_a_number_that_went_to_another_process_is_not_ours(settings: Settings, service: Make) -> None:
    sleeper = service("import time; time.sleep(600)")
    processes.start(sleeper, settings)
    note = read_json(processes.note_path("demo", settings))
    write_json(processes.note_path("demo", settings), note | {"created": note["created"] - 60})
    assert processes.running("demo", settings) is None
    os.kill(note["pid"], signal.SIGKILL)


def test_a_service_that_ends_is_named_with_its_last_words(settings: Settings, service: Make) -> None:
    team = Team(settings)
    team.services = {"demo": service("print('no room on the disk'); raise SystemExit(3)", check=["false"])}
    with pytest.raises(UserError, match=r"(?s)demo: ended by itself.*no room on the disk"):
        team.up()
    assert team.states() == {"demo": "ended by itself"}


def test_a_service_that_never_gets_healthy_is_given_up(settings: Settings, service: Make) -> None:
    team = Team(settings)
    sleeper = service("import time; time.sleep(600)", check=["false"], patience=0.5)
    team.services = {"demo": sleeper}
    with pytest.raises(UserError, match="demo: not healthy"):
        team.up()
    processes.stop(sleeper, settings)


def test_a_taken_port_is_named_by_its_setting_before_anything_starts(settings: Settings, service: Make) -> None:
    team = Team(settings)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        team.services = {"first": service("", name="first"), "demo": service("", ports={"MLFLOW_PORT": port})}
        with pytest.raises(UserError, match=f"demo cannot have port {port} .* set MLFLOW_PORT to another"):
            team.up()
    assert set(team.states().values()) == {"stopped"}


def test_two_commands_do_not_meet(settings: Settings) -> None:
    with Team(settings).alone(), pytest.raises(UserError, match="another command is at work"), Team(settings).alone():
        pass


def test_the_users_own_servers_are_out_of_sight(service: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    seen = processes.environment(service("", environment={"AWS_ENDPOINT_URL": "http://here"}))
    assert "MLFLOW_TRACKING_URI" not in seen
    assert "AWS_PROFILE" not in seen
    assert seen["AWS_ENDPOINT_URL"] == "http://here"
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"


def test_without_postgresql_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install postgresql"):
        postgres.program_folder.__wrapped__()


def test_data_of_another_postgresql_are_left_alone(tmp_path: Path) -> None:
    require("initdb")
    (tmp_path / "PG_VERSION").write_text("9\n")
    with pytest.raises(UserError, match="made by PostgreSQL 9"):
        postgres.make_cluster({"PGDATA": str(tmp_path)})


def test_root_is_told_where_postgresql_cannot_go(home: Path, settings: Settings) -> None:
    """Everybody else runs it as themselves."""
    require("initdb")
    home.chmod(0o700)
    environment = {**Team(settings).services["postgres"].environment, "PGDATA": str(home / "postgres")}
    if os.geteuid() == 0:
        with pytest.raises(UserError, match="set STACK_HOME to a folder"):
            postgres.make_cluster(environment)
    else:
        assert postgres.account() == {}
        postgres.make_cluster(environment)
    assert (home / "postgres").exists() == (os.geteuid() != 0)
