"""The pipeline as DVC sees it: stages, their order, dependencies and outcomes.

Only this module imports dvc.
"""

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import psutil
import yaml
from dvc.config import Config, merge
from dvc.dependency.param import ParamsDependency
from dvc.dvcfile import LOCK_FILE as LOCK_FILE
from dvc.env import DVC_ROOT
from dvc.exceptions import DvcException
from dvc.fs import LocalFileSystem
from dvc.lock import make_lock
from dvc.repo import Repo, lock_repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.hash import hash_file
from voluptuous import Invalid

from tokenbridge.base.errors import UserError
from tokenbridge.base.subprocesses import lives
from tokenbridge.config.params import PARAMS_FILE

logger = logging.getLogger(__name__)

RAN, SKIPPED, CACHED, FAILED = "ran", "skipped", "cached", "failed"
BRING_BACK = "resolve the conflict, or bring the file back with `git checkout`"
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


@contextmanager
def opened(root: Path) -> Iterator[Repo]:
    """Open a project of DVC. Without git, as in a downloaded archive, DVC is told so in .dvc/config.local.

    Raises:
        UserError: with what DVC says, if it cannot read its files during the body.
    """
    try:
        _note_missing_git(root)
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"DVC cannot work in {root} ({_brief(error)}): {BRING_BACK}") from error


def _note_missing_git(root: Path) -> None:
    above = [root.absolute(), *root.absolute().parents]
    if any((each / ".git").exists() for each in above) or not (root / Repo.DVC_DIR).is_dir():
        return
    config = Config(str(root / Repo.DVC_DIR))
    if not config["core"].get("no_scm"):
        with config.edit("local") as local:
            local["core"]["no_scm"] = True
        logger.info("no history of git: runs are recorded without their commit (core.no_scm in .dvc/config.local)")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def read_stages(root: Path) -> dict[str, StageSpec]:
    """Return every stage of root/dvc.yaml by name, dependencies first."""
    with opened(root) as repo:
        return _specs(repo)


def read_pipeline(root: Path) -> tuple[dict[str, StageSpec], list[str]]:
    """Return what ``read_stages`` does, and the stages that may have to run: the changed ones, and all behind them.

    Every stage may if DVC cannot report its status, for example because another dvc command is running.
    """
    with opened(root) as repo:
        try:
            with lock_repo(repo):  # else DVC would read its files again for the status
                return _specs(repo), _stale(repo)
        except DvcException:
            specs = _specs(repo)
            return specs, list(specs)


def _specs(repo: Repo) -> dict[str, StageSpec]:
    graph, locked = repo.index.graph, locked_outs(Path(repo.root_dir))
    stages = list(nx.dfs_postorder_nodes(graph))
    declared = [name for stage in stages for dep in _params(stage) for name in dep.params]
    # of all stages at once, because each call parses the file
    values = ParamsDependency(None, str(Path(repo.root_dir, PARAMS_FILE)), declared, repo).read_params()
    return {stage.name: _spec(stage, graph, locked, values) for stage in stages}


def _params(stage: Any) -> list[ParamsDependency]:
    return [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]


def _spec(stage: Any, graph: Any, locked: dict[str, str], values: dict[str, Any]) -> StageSpec:
    params = {name: values[name] for dep in _params(stage) for name in dep.params if name in values}
    deps: dict[str, str] = {}
    for dep in stage.deps:
        if not isinstance(dep, ParamsDependency):
            here = locked.get(dep.def_path) or (dep.get_hash().value if dep.exists else "absent")
            deps[dep.def_path] = here
    needed = sorted(other.name for other in graph.successors(stage))
    return StageSpec(stage.name, params, deps, [out.def_path for out in stage.outs], needed)


def _stale(repo: Repo) -> list[str]:
    graph = repo.index.graph
    status = repo.status()
    changed = {stage for stage in graph if stage.addressing in status}
    return [stage.name for stage in nx.dfs_postorder_nodes(graph) if changed & {stage, *nx.descendants(graph, stage)}]


def read_outcome(line: str) -> dict[str, str]:
    """Return {stage: outcome} if dvc's line reports one, else {}."""
    return {found[1]: outcome for pattern, outcome in OUTCOMES.items() if (found := re.match(pattern, line))}


def read_lock(root: Path) -> dict[str, LockedStage]:
    """Return every stage of root/dvc.lock by name. The result is empty before the first run."""
    path = root / LOCK_FILE
    return parse_lock(path.read_bytes()) if path.exists() else {}


def parse_lock(content: bytes | str) -> dict[str, LockedStage]:
    """Return every stage of a dvc.lock by name, given the file's content.

    Raises:
        UserError: if it is broken, such as by an unresolved conflict of git.
    """
    try:
        valid = COMPILED_LOCKFILE_SCHEMA(yaml.load(content, yaml.CSafeLoader))
    except (yaml.YAMLError, Invalid, ValueError, RecursionError) as error:
        raise UserError(f"{LOCK_FILE} is broken ({_brief(error)}): {BRING_BACK}") from error
    return {name: _locked(entry) for name, entry in valid.get("stages", {}).items()}


def locked_outs(root: Path) -> dict[str, str]:
    """Map each out of dvc.lock to its md5."""
    return {path: md5 for stage in read_lock(root).values() for path, md5 in stage.outs.items()}


def is_code(dependency: str) -> bool:
    """Return whether a dependency's path is a module or a package, not data."""
    return dependency.startswith("tokenbridge/")


def md5_as_dvc(path: Path) -> str:
    """Return the digest that dvc.lock has for a file or folder of data."""
    files = LocalFileSystem()
    _, _, found = build(HashFileDB(files, ""), str(path.resolve()), files, "md5", dry_run=True)
    return str(found.hash_info.value)


def drop_damaged(root: Path, specs: Collection[StageSpec]) -> list[str]:
    """Remove damaged objects from DVC's cache that it could restore as outs of these stages. Return these outs.

    DVC restores whatever an object of its cache holds. If the object is missing, DVC runs the stage instead.
    """
    if not specs:
        return []
    damaged = set[str]()
    with opened(root) as repo:
        entries = [*read_lock(root).values(), *_earlier_runs(Path(repo.stage_cache.cache_dir))]
        for spec in specs:
            for entry in entries:
                if entry.outs.keys() == set(spec.outs) and _may_be_restored(entry, spec):
                    damaged |= {out for out, md5 in entry.outs.items() if _drop_if_damaged(repo.cache.local, md5)}
    return sorted(damaged)


def _earlier_runs(folder: Path) -> Iterator[LockedStage]:
    """Yield what DVC's run cache remembers."""
    for path in folder.glob("*/*/*"):
        try:
            entry = _locked(yaml.load(path.read_bytes(), yaml.CSafeLoader))
        except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):  # DVC ignores damaged ones too
            continue
        yield entry


def _may_be_restored(entry: LockedStage, spec: StageSpec) -> bool:
    """Return whether an earlier run had the present settings and code. Its data are not known yet."""
    code = {path: md5 for path, md5 in entry.deps.items() if is_code(path)}
    return entry.params == spec.params and code.items() <= spec.deps.items()


def _drop_if_damaged(cache: HashFileDB, md5: str) -> bool:
    """Remove an object that does not have this digest, and such files of a folder. Return whether there was one."""
    path = Path(cache.oid_to_path(md5))
    if not path.exists():
        return False
    if hash_file(str(path), cache.fs, "md5")[1].value != md5.removesuffix(".dir"):
        path.unlink()
        return True
    files = json.loads(path.read_bytes()) if md5.endswith(".dir") else []
    return sum(_drop_if_damaged(cache, file["md5"]) for file in files) > 0


def clear_busy_paths(root: Path) -> None:
    """Remove DVC's list of busy paths when the processes in it have ended. Wait for those that have not.

    DVC does not write this file atomically. A kill or a power cut at the wrong moment leaves it empty. DVC then fails
    until the file is removed. It also fails at once where another dvc is running, or a killed one was not collected.
    """
    folder = root / ".dvc/tmp"
    file = folder / RWLOCK_FILE
    while file.exists():
        with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):  # no one writes the file while we hold this
            busy = [each for each in _busy(file) if lives(each) and is_dvc(each)]  # else the id was given again
            if not busy:
                file.unlink(missing_ok=True)
                return
        logger.info(f"another dvc, process {busy[0].pid}, is using {root}: waiting for it to end")
        psutil.wait_procs(busy)


def is_dvc(process: psutil.Process) -> bool:
    """Return whether a process runs dvc. The result is False if it has ended, or if we may not read its command."""
    with suppress(psutil.Error):
        return any(Path(word).name == "dvc" for word in process.cmdline()[:3])  # [python] [-m] dvc
    return False


def _busy(file: Path) -> list[psutil.Process]:
    """Return the processes of DVC's list of busy paths that exist."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        infos = [*content.get("write", {}).values(), *itertools.chain(*content.get("read", {}).values())]
        ids = {info["pid"] for info in infos} - {os.getpid()}
    except (ValueError, LookupError, TypeError, AttributeError):
        logger.info(f"{file} was half written by a dvc that was killed: removed")
        return []
    return [psutil.Process(each) for each in ids if psutil.pid_exists(each)]


def share_cache(root: Path, worktree: Path) -> None:
    """Let another checkout use the cache and the remotes of ``root``."""
    with opened(root) as ours, opened(worktree) as theirs, theirs.config.edit("local") as config:
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
