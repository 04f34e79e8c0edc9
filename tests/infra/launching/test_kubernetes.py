"""The manifest, against the schema that Kubernetes publishes; what a cluster does with it was never seen here."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import LAUNCHER
from tests.support.checkout import CHECKOUT
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json
from tokenbridge.config.launcher import KubernetesConfig
from tokenbridge.infra.launching import launch

SCHEMA = read_json(CHECKOUT / "tests/assets/kubernetes_schema.json")
TWO_PODS = replace(
    LAUNCHER,
    kind="kubernetes",
    nodes=2,
    processes=4,
    kubernetes=KubernetesConfig(
        image="registry.example.org/tokenbridge:cuda",
        namespace="research",
        volume_claim="projects",
        mount="/work",
        gpus=4,
        cpus=32,
        memory="128Gi",
        shared_memory="16Gi",
        node_selector={"gpu": "h100"},
    ),
)


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By kind; what is written where there is no kubectl."""
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    path = tmp_path / "work/job.yaml"
    with pytest.raises(UserError, match=f"kubectl apply -f {path}"):
        launch(["train", "base"], root=tmp_path, work=path.parent, launcher=TWO_PODS)
    return {part["kind"]: part for part in yaml.safe_load_all(path.read_text())}


@pytest.mark.parametrize(
    ("kind", "name"), [("Job", "io.k8s.api.batch.v1.Job"), ("Service", "io.k8s.api.core.v1.Service")]
)
def test_what_is_rendered_is_what_kubernetes_takes(manifest: dict[str, Any], kind: str, name: str) -> None:
    schema = SCHEMA | {"$ref": f"#/$defs/{name}"}
    jsonschema.validate(manifest[kind], schema)
    with pytest.raises(jsonschema.ValidationError, match="completionmode"):
        jsonschema.validate(manifest[kind] | {"spec": {"completionmode": "Indexed"}}, schema)


def test_each_node_is_a_pod_that_meets_the_others_at_the_first(manifest: dict[str, Any]) -> None:
    job, service = manifest["Job"], manifest["Service"]
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    name = job["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert pod["subdomain"] == service["metadata"]["name"]
    assert {"--nnodes=2", "--nproc-per-node=4"} <= set(container["command"])
    assert any(part.startswith(f"--rdzv-endpoint={name}-0.{name}:") for part in container["command"])
    assert container["command"][-3:] == ["tokenbridge.stages.worker", "train", "base"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_a_pods_last_words_are_in_its_log_and_signals_reach_its_agent(manifest: dict[str, Any], tmp_path: Path) -> None:
    [container] = manifest["Job"]["spec"]["template"]["spec"]["containers"]
    bash, option, script, name, *_ = container["command"]
    agent = ["sh", "-c", "echo words; trap 'echo last words; exit 3' TERM; while :; do sleep 0.05; done"]
    environment = {"PATH": os.defpath, "LOG": str(tmp_path / "workers-job.log"), "JOB_COMPLETION_INDEX": "1"}
    pod = subprocess.Popen(
        [f"/bin/{bash}", option, script, name, *agent], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert pod.stdout is not None
    assert pod.stdout.readline() == "words\n"  # for `kubectl logs`
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(10) == 3
    assert (tmp_path / "workers-job-1.log").read_text() == "words\nlast words\n"
