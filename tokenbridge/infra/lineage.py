"""Which records of dvc.lock belong together.

DVC writes a stage's record when the stage runs. If a stage before it runs again and it does not, its record and its
outs stay, of an input that is no more. So two stages belong together only if no file is recorded with two digests.
"""

from collections.abc import Mapping

from tokenbridge.infra.dvc import LockedStage, is_code


def belong_together(lock: Mapping[str, LockedStage], stage: str, origin: str) -> bool:
    """Whether the outs of ``stage`` and of ``origin`` come from one and the same data and models.

    What is before ``origin`` does not count unless it is before ``stage`` too: a model stays itself when its VAE is
    trained anew, but the VAE's settings are no longer the model's.
    """
    if stage not in lock:
        return False
    digests: dict[str, str] = {}
    for name in {*stages_behind(lock, stage, origin), origin}:
        for path, md5 in (lock[name].deps | lock[name].outs).items():
            # a change of code that changed no out parts nothing
            if not is_code(path) and digests.setdefault(path, md5) != md5:
                return False
    return True


def stages_behind(lock: Mapping[str, LockedStage], stage: str, origin: str | None = None) -> list[str]:
    """``stage`` and all stages before it, in the order of the file, not going past ``origin``."""
    maker = {path: name for name, record in lock.items() for path in record.outs}
    found: set[str] = set()
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [maker[path] for path in lock[name].deps if path in maker and name != origin]
    return [name for name in lock if name in found]
