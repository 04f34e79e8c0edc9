"""The pipeline as DVC sees it: stages, their order, and their dependencies.

Only this module and storage/remote.py import dvc.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from omegaconf import OmegaConf

from tokenbridge.base.files import sha256_tree
from tokenbridge.config.params import PARAMS_FILE

LOCK_FILE = "dvc.lock"
CODE = "tokenbridge/"  # prefix of the paths of code among a stage's dependencies
BYTECODE = "__pycache__"  # listed in .dvcignore


@dataclass(frozen=True)
class StageSpec:
    """One stage of dvc.yaml, with its current parameters and dependencies.

    Attributes:
        params: declared parameters by dotted name, with their values in params.yaml.
        deps: path -> digest: the md5 of dvc.lock for another stage's out, DVC's md5 for code, SHA-256 for other files,
            or ``absent``.
        outs: paths, including metrics and plots.
    """

    name: str
    params: dict[str, Any]
    deps: dict[str, str]
    outs: list[str]

    @property
    def key(self) -> str:
        """The digest of name, parameters and dependencies, which decide what the stage writes."""
        text = json.dumps([self.name, self.params, self.deps], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LockedStage:
    """One stage of dvc.lock, from its last run.

    Attributes:
        params: declared parameters with the values of that run, under the names in dvc.yaml.
        deps: path -> DVC's md5.
        outs: path -> DVC's md5, including metrics and plots.
    """

    params: dict[str, Any]
    deps: dict[str, str]
    outs: dict[str, str]


def read_stages(root: Path) -> dict[str, StageSpec]:
    """Return every stage of root/dvc.yaml by name, dependencies first."""
    with Repo(str(root)) as repo:
        order = _dependencies_first(repo.index.graph)
        locked = locked_outs(root)
        return {stage.name: _spec(stage, root, locked) for stage in order}


def read_graph(root: Path) -> dict[str, list[str]]:
    """Map each stage to the stages that it directly needs, dependencies first."""
    with Repo(str(root)) as repo:
        graph = repo.index.graph
        return {s.name: sorted(d.name for d in graph.successors(s)) for s in _dependencies_first(graph)}


def stale_stages(root: Path) -> list[str]:
    """Return the stages that may have to run, dependencies first: the changed ones and all that depend on them.

    Return every stage if DVC cannot report its status, for example because another dvc command is running.
    """
    with Repo(str(root)) as repo:
        graph = repo.index.graph
        order = _dependencies_first(graph)
        try:
            changed = set(repo.status())
        except DvcException:
            return [stage.name for stage in order]
        stale: list[str] = []
        for stage in order:
            if stage.addressing in changed or any(needed.name in stale for needed in graph.successors(stage)):
                stale.append(stage.name)
        return stale


def read_lock(root: Path) -> dict[str, LockedStage]:
    """Return every stage of root/dvc.lock by name. The result is empty before the first run."""
    path = root / LOCK_FILE
    return parse_lock(path.read_text()) if path.exists() else {}


def parse_lock(text: str) -> dict[str, LockedStage]:
    """Return every stage of a dvc.lock by name, given the file's text."""
    return {name: _locked(entry) for name, entry in yaml.safe_load(text)["stages"].items()}


def locked_outs(root: Path) -> dict[str, str]:
    """Map each out of dvc.lock to its md5."""
    return {path: md5 for stage in read_lock(root).values() for path, md5 in stage.outs.items()}


def is_code(dependency: str) -> bool:
    """Return whether a dependency's path is a module or a package, not data."""
    return dependency.startswith(CODE)


def md5_as_dvc(path: Path) -> str:
    """Return the digest that dvc.lock has for an out or for code: of a file, or of a folder's list of files."""
    if path.is_file():
        return _md5(path)
    files = {
        file.relative_to(path).as_posix(): file
        for file in path.rglob("*")
        if file.is_file() and BYTECODE not in file.parts
    }
    listed = [{"md5": _md5(file), "relpath": name} for name, file in sorted(files.items())]
    return hashlib.md5(json.dumps(listed).encode()).hexdigest() + ".dir"


def repair_lock_file(root: Path) -> None:
    """Remove DVC's list of busy paths if it is half written.

    DVC does not write this file atomically. A kill or a power cut at the wrong moment leaves it empty. DVC then fails
    until the file is removed.
    """
    folder = root / ".dvc/tmp"
    file = folder / RWLOCK_FILE
    if not file.exists():
        return
    with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):  # no one writes the file while we hold this lock
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            print(f"{file.relative_to(root)} was half written by a dvc that was killed: removed", flush=True)
            file.unlink()


def share_cache(root: Path, worktree: Path) -> None:
    """Let another checkout use the cache and the remotes of ``root``."""
    local = Path(".dvc/config.local")
    if (root / local).exists():
        shutil.copyfile(root / local, worktree / local)
    with Repo(str(root)) as repo:
        cache = repo.cache.local_cache_dir
    with Repo(str(worktree)) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = cache


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _locked(entry: dict[str, Any]) -> LockedStage:
    digests = {
        kind: {item["path"]: item["md5"] for item in entry.get(kind, []) if "md5" in item} for kind in ("deps", "outs")
    }
    return LockedStage(params=entry.get("params", {}).get(PARAMS_FILE, {}), **digests)


def _dependencies_first(graph: Any) -> list[Any]:
    needed = {stage: sorted(graph.successors(stage), key=lambda s: s.name) for stage in graph}
    return list(TopologicalSorter(needed).static_order())


def _spec(stage: Any, root: Path, locked: dict[str, str]) -> StageSpec:
    settings = OmegaConf.load(root / PARAMS_FILE)
    params: dict[str, Any] = {}
    deps: dict[str, str] = {}
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            for name in dep.params:
                value = OmegaConf.select(settings, name)
                params[name] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        else:
            deps[dep.def_path] = _digest(dep.def_path, root, locked)
    return StageSpec(stage.name, params, deps, [out.def_path for out in stage.outs])


def _digest(path: str, root: Path, locked: dict[str, str]) -> str:
    if path in locked:
        return locked[path]
    if not (root / path).exists():
        return "absent"
    return md5_as_dvc(root / path) if is_code(path) else sha256_tree(root / path)
