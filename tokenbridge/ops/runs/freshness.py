"""Changes of the images' source: when to fetch again, and when a retrain would only repeat a finished run.

DVC watches settings and files of the repository, but no folder elsewhere and no prefix on S3.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from tokenbridge.base.files import atomic_write_text
from tokenbridge.config import Config
from tokenbridge.config.params import PARAMS_FILE, compose_config, load_params, validate
from tokenbridge.infra.git import git_tags
from tokenbridge.infra.tracking.recorded import PIPELINE, SOURCE_STATE
from tokenbridge.sources.state import source_state

FETCHED = Path(".work/fetched_source")  # state of the source that data/images was made from
WATCHED_BY_DVC = ("idx",)  # sources whose file digests are settings


def is_stale(root: Path, config: Config, state: str) -> bool:
    """Return whether data/images was made from another state of the source, or from a state that was not noted.

    Missing images are stale only if another state was noted for them. Otherwise DVC restores or fetches them.
    """
    known = (root / "data/images").exists() or (root / FETCHED).exists()
    return known and not is_of(root, config, state)


def is_of(root: Path, config: Config, state: str) -> bool:
    """Return whether data/images is known to be made from this state of the source."""
    noted = root / FETCHED
    return config.data.source in WATCHED_BY_DVC or (noted.exists() and noted.read_text() == state)


def note_fetched(root: Path, state: str) -> None:
    atomic_write_text(root / FETCHED, state)


def planned_settings(root: Path, overrides: Sequence[str]) -> tuple[Config, str]:
    """Return the settings of a pipeline with these overrides, and the text of its params.yaml.

    Raises:
        ConfigError: if they are invalid.
    """
    if not overrides:
        return load_params(root), (root / PARAMS_FILE).read_text(encoding="utf-8")
    composed = compose_config(overrides, root / "conf")
    return validate(composed), OmegaConf.to_yaml(composed)


def nothing_new(root: Path, overrides: Sequence[str]) -> str | None:
    """Return why a run would only repeat a finished one with the same source, settings and code, or None.

    Also return None if MLflow does not answer: an unnecessary run is better than a missing one.

    Raises:
        UserError: if the source cannot be reached.
    """
    from tokenbridge.infra.tracking.store import connect  # imports MLflow, which a pipeline run does not need

    config, settings = planned_settings(root, overrides)
    code = git_tags(root)
    if code.get("git.dirty") != "false":
        return None
    same = {
        "stage": PIPELINE,
        "stage.key": hashlib.sha256(settings.encode()).hexdigest(),
        SOURCE_STATE: source_state(config.data, config.storage),
        "git.commit": code["git.commit"],
    }
    conditions = [f"tags.`{tag}` = '{value}'" for tag, value in same.items()]
    try:
        run = connect(root).newest(" and ".join([*conditions, "attributes.status = 'FINISHED'"]))
    except Exception:  # whatever MLflow raises when it is down
        return None
    return f"run {run} had the same source, settings and code" if run else None
