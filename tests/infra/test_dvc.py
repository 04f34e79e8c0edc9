"""Stages as DVC sees them: order, parameters, keys, and which are stale."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.cli import main

from tests.support.checkout import CHECKOUT
from tests.support.dvc import init_dvc
from tokenbridge.base.errors import UserError
from tokenbridge.infra.dvc import (
    clear_busy_paths,
    drop_damaged,
    opened,
    read_lock,
    read_pipeline,
    read_stages,
    share_cache,
)

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
    init_dvc(tmp_path)
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
    assert read_pipeline(repository)[1] == ["first", "middle", "last"]
    for out in ("first.txt", "middle.txt", "last.json"):
        (repository / out).write_text("{}")
    subprocess.run([*DVC, "commit", "--quiet", "--force"], cwd=repository, check=True)
    assert read_pipeline(repository)[1] == []
    (repository / "params.yaml").write_text("seed: 1\ngroup: {a: 1, b: [2, 3]}\n")
    assert read_pipeline(repository)[1] == ["last"]
    (repository / "params.yaml").write_text("seed: 0\ngroup: {a: 2}\n")
    assert read_pipeline(repository)[1] == ["first", "middle", "last"]


@pytest.mark.parametrize("torn", ["", '{"read": {"a', "[]", '{"write": 1}', '{"write": {"x": {}}, "read": {}}'])
def test_a_torn_list_of_busy_paths_is_removed(repository: Path, torn: str, caplog: pytest.LogCaptureFixture) -> None:
    file = repository / ".dvc/tmp/rwlock"
    for content, words in ((torn, "half written"), ("{}", "")):
        file.write_text(content)
        with caplog.at_level(logging.INFO, "tokenbridge"):
            clear_busy_paths(repository)
        assert not file.exists()
        assert words in caplog.text
        assert bool(words) == bool(caplog.text)
        caplog.clear()


@pytest.mark.parametrize("name", ["dvc", "other"])
def test_a_path_is_busy_while_the_dvc_that_uses_it_lives(
    repository: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An ended process that its parent did not collect has ended, and the id of another program was given again."""
    (repository / name).write_text("import sys; print(flush=True); sys.stdin.read()")
    busy = subprocess.Popen([sys.executable, name], cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert busy.stdin is not None
    assert busy.stdout is not None
    busy.stdout.readline()
    file = repository / ".dvc/tmp/rwlock"
    file.write_text(json.dumps({"read": {"first.txt": [{"pid": busy.pid, "cmd": "dvc repro"}]}}))
    closing = threading.Timer(0.5, busy.stdin.close)
    closing.start()
    with caplog.at_level(logging.INFO, "tokenbridge"):
        clear_busy_paths(repository)
    assert (f"process {busy.pid}, is using" in caplog.text) == (name == "dvc")
    assert (busy.poll() is not None) == (name == "dvc")
    assert not file.exists()
    closing.join()
    busy.wait()


BROKEN = [
    "",
    "stages:",
    "schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n=======\n",
    "schema: '2.0'\nstages: {first: null}",
    "schema: '2.0'\nstages: {first: {cmd: x, outs: [{path: 1}]}}",
    "schema: '9.0'\nstages: {}",
    "- " * 5000,
]


@pytest.mark.parametrize("read", [read_lock, read_stages, read_pipeline])
@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_lock_file_says_how_to_bring_it_back(
    repository: Path, content: str, read: Callable[[Path], object]
) -> None:
    (repository / "dvc.lock").write_text(content)
    with pytest.raises(UserError, match=r"dvc\.lock.*`git checkout`") as caught:
        read(repository)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lock", "damaged"), [(True, b"a\n"), (False, b"[")])  # else only the run cache knows the outs
def test_a_damaged_object_is_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: bool, damaged: bytes
) -> None:
    make = "mkdir -p folder && echo a > folder/a && echo b > folder/b && echo run >> runs"
    stages = {"make": {"cmd": make, "params": ["seed"], "outs": ["folder"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    assert [main(["init", "--no-scm", "--quiet"]), main(["repro", "--quiet"])] == [0, 0]  # faster than processes
    shutil.rmtree(tmp_path / "folder")
    if not lock:
        (tmp_path / "dvc.lock").unlink()
    specs = read_stages(tmp_path).values()
    assert drop_damaged(tmp_path, specs) == []
    (file,) = [path for path in (tmp_path / ".dvc/cache/files").glob("*/*/*") if path.read_bytes().startswith(damaged)]
    before = file.stat()
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk that fails changes no times
    file.chmod(0o444)
    assert drop_damaged(tmp_path, specs) == ["folder"]
    assert main(["repro", "--quiet"]) == 0
    assert [(tmp_path / "folder" / name).read_text() for name in "ab"] == ["a\n", "b\n"]
    assert (tmp_path / "runs").read_text().count("run") == 2


def test_the_projects_own_graph_starts_with_fetch(repository: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(CHECKOUT / name, repository)
    stages = read_stages(repository)
    assert next(iter(stages)) == "fetch"
    assert stages["evaluate@tiny"].needed == ["classifier", "fetch", "generate@tiny"]
    assert stages["train@tiny"].needed == ["encode", "fetch", "fit_quantizer", "vae"]


def test_a_downloaded_archive_without_git_is_a_project_too(repository: Path) -> None:
    """Also for the dvc commands that we start, and that somebody starts later."""
    (repository / ".dvc/config").write_text("")
    command = [*DVC, "status"]
    assert subprocess.run(command, cwd=repository, check=False).returncode != 0
    assert list(read_stages(repository)) == ["first", "middle", "last"]
    assert subprocess.run(command, cwd=repository, check=False).returncode == 0


def test_relative_paths_of_the_machines_own_config_lead_a_worktree_to_the_same_place(repository: Path) -> None:
    worktree = repository / ".work/aside"
    shutil.copytree(repository / ".dvc", worktree / ".dvc")
    (repository / ".dvc/config.local").write_text(
        "[core]\n    remote = team\n['remote \"team\"']\n    url = ../../store\n"
    )
    share_cache(repository, worktree)
    for folder in (repository, worktree):
        with opened(folder) as repo:
            assert Path(repo.config["remote"]["team"]["url"]) == repository.parent / "store"
            assert Path(repo.cache.local_cache_dir) == repository / ".dvc/cache"
