"""The pipeline as DVC sees it: stages, their order, dependencies and outcomes.

Only this module and ``tokenbridge.infra.storage.remote`` import dvc.
"""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import yaml
from dvc.config import merge
from dvc.dependency.param import ParamsDependency
from dvc.dvcfile import LOCK_FILE as LOCK_FILE
from dvc.env import DVC_ROOT
from dvc.exceptions import DvcException
from dvc.fs import LocalFileSystem
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB

from tokenbridge.config.params import PARAMS_FILE

logger = logging.getLogger(__name__)

CODE = "tokenbridge/"  # prefix of the paths of code among a stage's dependencies
RAN, SKIPPED, CACHED, FAILED = "ran", "skipped", "cached", "failed"
OUTCOMES = {
    r"Running stage '(.+)':": RAN,
    r"Stage '(.+)' didn't change, skipping": SKIPPED,
    r"Stage '(.+)' is cached - skipping run": CACHED,
    r"ERROR: failed to reproduce '(.+?)'": FAILED,
}


@dataclass(frozen=True)
class StageSpec:
    """One stage of dvc.yaml, with its current parameters and dependencies.

    Attributes:
        params: declared parameters by dotted name, with their values in params.yaml.
        deps: path -> DVC's md5: of dvc.lock for another stage's out, else of the file or folder, or ``absent``.
        outs: paths, including metrics and plots.
        needed: the stages that it directly depends on.
    """

    name: str
    params: dict[str, Any]
    deps: dict[str, str]
    outs: list[str]
    needed: list[str]

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
        graph, locked = repo.index.graph, locked_outs(root)
        return {stage.name: _spec(stage, graph, locked) for stage in nx.dfs_postorder_nodes(graph)}


def _spec(stage: Any, graph: Any, locked: dict[str, str]) -> StageSpec:
    params: dict[str, Any] = {}
    deps: dict[str, str] = {}
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            params |= dep.read_params()
        else:
            here = locked.get(dep.def_path) or (dep.get_hash().value if dep.exists else "absent")
            deps[dep.def_path] = here
    needed = sorted(other.name for other in graph.successors(stage))
    return StageSpec(stage.name, params, deps, [out.def_path for out in stage.outs], needed)


def stale_stages(root: Path) -> list[str]:
    """Return the stages that may have to run, dependencies first: the changed ones and all that depend on them.

    Return every stage if DVC cannot report its status, for example because another dvc command is running.
    """
    with Repo(str(root)) as repo:
        graph = repo.index.graph
        order = list(nx.dfs_postorder_nodes(graph))
        try:
            status = repo.status()
        except DvcException:
            return [stage.name for stage in order]
        changed = {stage for stage in order if stage.addressing in status}
        return [stage.name for stage in order if changed & {stage, *nx.descendants(graph, stage)}]


def read_outcome(line: str) -> dict[str, str]:
    """Return {stage: outcome} if dvc's line reports one, else {}."""
    matches = {outcome: re.match(pattern, line) for pattern, outcome in OUTCOMES.items()}
    return {match[1]: outcome for outcome, match in matches.items() if match}


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
    """Return the digest that dvc.lock has for a file or folder of data."""
    files = LocalFileSystem()
    _, _, found = build(HashFileDB(files, ""), str(path.resolve()), files, "md5", dry_run=True)
    return str(found.hash_info.value)


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
            logger.info(f"{file.relative_to(root)} was half written by a dvc that was killed: removed")
            file.unlink()


def share_cache(root: Path, worktree: Path) -> None:
    """Let another checkout use the cache and the remotes of ``root``."""
    with Repo(str(root)) as ours, Repo(str(worktree)) as theirs, theirs.config.edit("local") as config:
        merge(config, ours.config.read("local"))
        config["cache"]["dir"] = ours.cache.local_cache_dir


def checkout_of(root: Path) -> Path:
    """Return the checkout of a stage that DVC runs in ``root``.

    That is another folder if ``root`` is a temporary copy, which ``dvc exp run --temp`` and ``--queue`` remove later.
    """
    return Path(os.environ.get(DVC_ROOT, root))


def _locked(entry: dict[str, Any]) -> LockedStage:
    digests = {
        kind: {item["path"]: item["md5"] for item in entry.get(kind, []) if "md5" in item} for kind in ("deps", "outs")
    }
    return LockedStage(params=entry.get("params", {}).get(PARAMS_FILE, {}), **digests)
