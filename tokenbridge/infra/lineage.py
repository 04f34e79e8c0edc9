"""Which records of dvc.lock belong together.

DVC writes a stage's record when the stage runs. If an earlier stage runs again and this one does not, its record and
its outs stay, although their input no longer exists. So two stages belong together only if no file is recorded with two
digests.
"""

from collections.abc import Mapping

import networkx as nx

from tokenbridge.infra.dvc import LockedStage, is_code


def belong_together(lock: Mapping[str, LockedStage], stage: str, origin: str) -> bool:
    """Return whether the outs of ``stage`` and of ``origin`` come from the same data and models.

    A stage before ``origin`` counts only if ``stage`` also depends on it by another path. So a model stays
    the same when its VAE is trained again, but the VAE's new settings do not belong to the model.
    """
    if stage not in lock:
        return False
    digests: dict[str, str] = {}
    for name in {*stages_behind(lock, stage, origin), origin}:
        for path, md5 in (lock[name].deps | lock[name].outs).items():
            # code is left out, because a code change that changed no out does not matter
            if not is_code(path) and digests.setdefault(path, md5) != md5:
                return False
    return True


def stages_behind(lock: Mapping[str, LockedStage], stage: str, origin: str | None = None) -> list[str]:
    """Return ``stage`` and all stages before it, in the order of the file, without going past ``origin``."""
    maker = {path: name for name, record in lock.items() for path in record.outs}
    needs = [(name, maker[path]) for name in lock.keys() - {origin} for path in lock[name].deps if path in maker]
    graph = nx.DiGraph(needs)
    graph.add_node(stage)
    found = {stage, *nx.descendants(graph, stage)}
    return [name for name in lock if name in found]
