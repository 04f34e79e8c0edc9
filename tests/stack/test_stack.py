"""The real services, together."""

import base64
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from mlflow import MlflowClient
from native import backup
from native.settings import SECRETS, read_env, secret_names
from native.team import SERVICES, Team

from tests.pipeline.project import wait_for
from tests.stack.conftest import Stack, answer, experiments, log_run
from tests.support.patience import PATIENCE
from tokenbridge.base.errors import UserError

pytestmark = pytest.mark.cluster

PREFLIGHT = "Access-Control-Request-Method"

FLOW = """
    import os
    from pathlib import Path
    from prefect import flow

    @flow
    def greet(name: str) -> str:
        Path(__file__).with_name("greeting.txt").write_text(f"{name} {os.environ['MLFLOW_TRACKING_URI']}")
        return name
"""
DEPLOY = """
    import sys
    from prefect import flow
    from prefect.deployments import run_deployment

    folder, pool, patience = sys.argv[1:]
    deployed = flow.from_source(folder, entrypoint="greeting.py:greet").deploy(
        "test", work_pool_name=pool, print_next_steps=False, ignore_warnings=True
    )
    run = run_deployment("greet/test", parameters={"name": "Ada"}, timeout=int(patience), poll_interval=0.5)
    print(run.state.type.value)
"""


def test_a_second_up_starts_nothing_and_all_is_healthy(stack: Stack) -> None:
    again = stack("up")
    assert again.returncode == 0
    assert "starting" not in again.stdout
    status = stack("status")
    assert status.returncode == 0
    assert re.findall(r"^(\w+) +healthy$", status.stdout, re.MULTILINE) == SERVICES


def test_everything_listens_on_loopback_and_talks_to_nobody_else(stack: Stack) -> None:
    found = [link for process in stack.processes() for link in process.net_connections()]
    assert {link.laddr.ip for link in found} == {"127.0.0.1"}
    assert {link.raddr.ip for link in found if link.raddr} == {"127.0.0.1"}


def test_secrets_are_in_two_private_files_and_nowhere_else(stack: Stack) -> None:
    secrets = [value for name, value in read_env(stack.home / SECRETS).items() if name in secret_names()]
    for path in (stack.home / SECRETS, stack.home / "client.env"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    seen = [" ".join(process.cmdline()) for process in stack.processes()]
    seen += [path.read_text(errors="replace") for path in (stack.home / "logs").iterdir()]
    assert not [secret for secret in secrets for text in seen if secret in text]


def test_an_artifact_goes_through_mlflow_into_the_bucket(stack: Stack, client: MlflowClient, tmp_path: Path) -> None:
    run = log_run(client, "first day")
    settings = stack.settings()
    objects = backup.filesystem(settings).find(f"{settings['MLFLOW_BUCKET']}/artifacts")
    assert [key for key in objects if key.endswith(f"/{run}/artifacts/notes/hello.txt")]
    assert Path(client.download_artifacts(run, "notes/hello.txt", str(tmp_path))).read_text() == "hello"


def test_the_buckets_are_there_and_a_misspelt_one_is_not_made(stack: Stack) -> None:
    settings = stack.settings()
    files = backup.filesystem(settings)
    assert set(files.ls("")) == {settings["MLFLOW_BUCKET"], settings["DVC_BUCKET"], settings["DATA_BUCKET"]}
    with pytest.raises(FileNotFoundError):
        files.pipe("misspelt/key", b"")


def test_mlflow_serves_those_who_call_it_by_an_allowed_name(stack: Stack) -> None:
    assert answer(experiments(stack)) == 200
    assert answer(experiments(stack), Host="rebound.example") == 403


def test_prefect_serves_those_who_have_the_password_and_no_other_page(stack: Stack) -> None:
    """Whoever may create a flow run can run commands as the worker."""
    flows = stack.clients()["PREFECT_API_URL"] + "/flows/filter"
    password = base64.b64encode(stack.clients()["PREFECT_API_AUTH_STRING"].encode()).decode()
    assert answer(flows, data=b"{}") == answer(flows, data=b"{}", Authorization="Basic d3Jvbmc=") == 401
    assert answer(flows, data=b"{}", Authorization=f"Basic {password}") == 200
    assert answer(flows, method="OPTIONS", Origin="http://page.example", **{PREFLIGHT: "POST"}) == 400


def test_the_worker_runs_a_deployed_flow_with_the_servers_addresses(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "greeting.py").write_text(textwrap.dedent(FLOW))
    settings = stack.settings()
    environment = {**stack.main_process("worker").environ(), "PREFECT_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", textwrap.dedent(DEPLOY), str(tmp_path), settings["WORK_POOL"], str(PATIENCE // 2)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ended.stdout.splitlines()[-1] == "COMPLETED", ended.stdout + ended.stderr
    assert (tmp_path / "greeting.txt").read_text() == f"Ada {stack.clients()['MLFLOW_TRACKING_URI']}"


def test_a_service_that_died_is_started_again(stack: Stack) -> None:
    worker = stack.main_process("worker")
    worker.kill()
    wait_for(lambda: stack.pid("worker") not in (0, worker.pid), "new worker")
    wait_for(lambda: stack("status").returncode == 0, "healthy worker")
    assert "starting" not in stack("up").stdout


def test_other_ports_are_refused_while_it_runs(stack: Stack) -> None:
    refused = stack("up", MLFLOW_PORT="5999")
    assert refused.returncode == 1
    assert re.search(r"the stack runs with MLFLOW_PORT=\d+, and 5999 is set now", refused.stderr)


def test_a_restore_adds_to_nothing_that_is_there(stack: Stack, client: MlflowClient, tmp_path: Path) -> None:
    team = Team(stack.settings())
    log_run(client, "kept")
    with pytest.raises(UserError, match="database mlflow is not empty"):
        backup.fill_database(team.settings, "mlflow", tmp_path)
    with pytest.raises(UserError, match="bucket mlflow is not empty"):
        backup.fill_bucket(backup.filesystem(team.settings), "mlflow", tmp_path)
