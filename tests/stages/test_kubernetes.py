"""The example manifest, against the schema that Kubernetes publishes; no cluster has run it."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.checkout import CHECKOUT
from tokenbridge.base.files import read_json
from tokenbridge.infra.dvc import read_stages
from tokenbridge.stages.runtime import WORK

SCHEMA = read_json(CHECKOUT / "tests/assets/kubernetes_schema.json")
MANIFEST = {part["kind"]: part for part in yaml.safe_load_all((CHECKOUT / "docker/kubernetes.yaml").read_text())}


@pytest.mark.parametrize(
    ("kind", "name"), [("Job", "io.k8s.api.batch.v1.Job"), ("Service", "io.k8s.api.core.v1.Service")]
)
def test_the_example_is_what_kubernetes_takes(kind: str, name: str) -> None:
    schema = SCHEMA | {"$ref": f"#/$defs/{name}"}
    jsonschema.validate(MANIFEST[kind], schema)
    with pytest.raises(jsonschema.ValidationError, match="completionmode"):
        jsonschema.validate(MANIFEST[kind] | {"spec": {"completionmode": "Indexed"}}, schema)


def test_each_node_is_a_pod_that_meets_the_others_at_the_first() -> None:
    job, service = MANIFEST["Job"], MANIFEST["Service"]
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    name, environment = job["metadata"]["name"], environment_of(container)
    assert int(environment["NODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert environment["PROCESSES"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert environment["HEAD"] == f"{name}-0.{pod['subdomain']}:{container['ports'][0]['containerPort']}"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def test_a_pods_workers_work_in_the_stages_folder(repository: Path, tmp_path: Path) -> None:
    [container] = MANIFEST["Job"]["spec"]["template"]["spec"]["containers"]
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "torchrun").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (programs / "torchrun").chmod(0o755)
    settings = environment_of(container) | {"STAGE": "encode", "PYTHONPATH": str(CHECKOUT)}
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [*container["command"], *container["args"]]
    run = partial(
        subprocess.run,
        command,
        cwd=repository,
        env=os.environ | settings | {"PATH": path},
        capture_output=True,
        text=True,
    )
    pod = run()
    assert pod.returncode == 0, pod.stderr
    words = pod.stdout.splitlines()
    work = repository / WORK / "encode" / read_stages(repository)["encode"].key
    assert {"--nnodes=2", "--nproc-per-node=8", "--log-line-prefix-template=[rank ${rank}] "} <= set(words)
    assert words[-5:] == ["-m", "tokenbridge.stages.worker", "encode", str(repository), str(work)]
    assert work.is_dir()
    (work / "failed.txt").write_text("the disk is full")
    failed, rule = run(), MANIFEST["Job"]["spec"]["podFailurePolicy"]["rules"][0]
    assert failed.stdout.endswith("the disk is full")
    assert (rule["action"], [failed.returncode]) == ("FailJob", rule["onExitCodes"]["values"])
