"""Stages as DVC sees them: order, parameters, keys, and which are stale."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.checkout import CHECKOUT
from tokenbridge.infra.dvc import read_stages, repair_lock_file, stale_stages

DVC = (sys.executable, "-m", "dvc")
DVC_YAML = {
    "stages": {
        "last": {"cmd": "true", "deps": ["middle.txt", "code.py"], "params": ["seed"], "metrics": ["last.json"]},
        "first": {"cmd": "true", "deps": ["code.py"], "params": ["group"], "outs": ["first.txt"]},
        "middle": {"cmd": "true", "deps": ["first.txt"], "outs": ["middle.txt"]},
    }
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run([*DVC, "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(DVC_YAML))
    (tmp_path / "params.yaml").write_text("seed: 0\ngroup: {a: 1, b: [2, 3]}\nlauncher: {threads: 1}\n")
    (tmp_path / "code.py").write_text("x = 1\n")
    return tmp_path


def test_stages_come_in_order_with_their_parameters_and_outs(repository: Path) -> None:
    stages = read_stages(repository)
    needed = [(name, stage.needed) for name, stage in stages.items()]
    assert needed == [("first", []), ("middle", ["first"]), ("last", ["middle"])]
    assert stages["first"].params == {"group": {"a": 1, "b": [2, 3]}}
    assert stages["last"].outs == ["last.json"]


def test_the_key_follows_parameters_and_inputs_and_nothing_else(repository: Path) -> None:
    def keys() -> dict[str, str]:
        return {name: spec.key for name, spec in read_stages(repository).items()}

    before = keys()
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("threads: 1", "threads: 8"))
    assert keys() == before
    (repository / "params.yaml").write_text(text.replace("a: 1", "a: 2"))
    assert {name for name, key in keys().items() if key != before[name]} == {"first"}
    (repository / "params.yaml").write_text(text)
    (repository / "code.py").write_text("x = 2\n")
    assert {name for name, key in keys().items() if key != before[name]} == {"first", "last"}


def test_an_input_made_by_a_stage_counts_by_its_md5_in_the_lock_file(repository: Path) -> None:
    before = read_stages(repository)["middle"].key
    lock = {"schema": "2.0", "stages": {"first": {"cmd": "true", "outs": [{"path": "first.txt", "md5": "a" * 32}]}}}
    (repository / "dvc.lock").write_text(yaml.safe_dump(lock))
    stage = read_stages(repository)["middle"]
    assert stage.deps == {"first.txt": "a" * 32}
    assert stage.key != before


def test_changed_stages_and_all_that_need_them_are_stale(repository: Path) -> None:
    assert stale_stages(repository) == ["first", "middle", "last"]
    for out in ("first.txt", "middle.txt", "last.json"):
        (repository / out).write_text("{}")
    subprocess.run([*DVC, "commit", "--quiet", "--force"], cwd=repository, check=True)
    assert stale_stages(repository) == []
    (repository / "params.yaml").write_text("seed: 1\ngroup: {a: 1, b: [2, 3]}\n")
    assert stale_stages(repository) == ["last"]
    (repository / "params.yaml").write_text("seed: 0\ngroup: {a: 2}\n")
    assert stale_stages(repository) == ["first", "middle", "last"]


@pytest.mark.parametrize("torn", ["", '{"read": {"a'])
def test_a_torn_list_of_busy_paths_is_repaired(repository: Path, torn: str) -> None:
    def dvc_works() -> bool:
        command = [*DVC, "commit", "--quiet", "--force", "first"]
        return subprocess.run(command, cwd=repository, check=False).returncode == 0

    (repository / "first.txt").write_text("out")
    file = repository / ".dvc/tmp/rwlock"
    file.write_text(torn)
    assert not dvc_works()
    repair_lock_file(repository)
    assert dvc_works()
    file.write_text('{"write": {}}')
    repair_lock_file(repository)
    assert file.exists()  # whole: DVC's own affair


def test_the_projects_own_graph_starts_with_fetch(repository: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(CHECKOUT / name, repository)
    stages = read_stages(repository)
    assert next(iter(stages)) == "fetch"
    assert stages["evaluate@tiny"].needed == ["classifier", "fetch", "generate@tiny"]
    assert stages["train@tiny"].needed == ["encode", "fetch", "fit_quantizer", "vae"]
