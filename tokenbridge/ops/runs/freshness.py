"""Whether the images' source is what it was: when to fetch anew, and when a retrain would repeat what is done.

DVC watches settings and files of the repository, not a folder elsewhere or a prefix on S3.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tokenbridge.base.files import atomic_write_text
from tokenbridge.config import Config
from tokenbridge.config.params import PARAMS_FILE, compose_config, validate
from tokenbridge.infra.git import git_tags
from tokenbridge.infra.tracking.recorded import PIPELINE, SOURCE_STATE
from tokenbridge.infra.tracking.store import connect
from tokenbridge.sources.state import source_state

FETCHED = Path(".work/fetched_source")  # state of the source that data/images was made of
WATCHED_BY_DVC = ("idx",)  # its files' digests are settings


def is_stale(root: Path, config: Config, state: str) -> bool:
    """Whether data/images was made of another state of the source, or of one that nobody noted.

    Images that are not there are DVC's to restore, unless it is known that they would be of another state.
    """
    known = (root / "data/images").exists() or (root / FETCHED).exists()
    return known and not is_of(root, config, state)


def is_of(root: Path, config: Config, state: str) -> bool:
    """Whether it is known that data/images was made of this state of the source."""
    noted = root / FETCHED
    return config.data.source in WATCHED_BY_DVC or (noted.exists() and noted.read_text() == state)


def note_fetched(root: Path, state: str) -> None:
    atomic_write_text(root / FETCHED, state)


def nothing_new(root: Path, overrides: Sequence[str]) -> str | None:
    """Why a pipeline would only repeat a finished one: the same source, settings and code; None if it would not.

    Also None when MLflow cannot tell: a run too many is better than one too few.

    Raises:
        UserError: if the source cannot be reached.
    """
    code, settings = git_tags(root), _settings(root, overrides)
    if code.get("git.dirty") != "false":
        return None
    config = validate(settings)
    same = {
        "stage": PIPELINE,
        "stage.key": hashlib.sha256(OmegaConf.to_yaml(settings).encode()).hexdigest(),  # of params.yaml
        SOURCE_STATE: source_state(config.data, config.storage),
        "git.commit": code["git.commit"],
    }
    conditions = [f"tags.`{tag}` = '{value}'" for tag, value in same.items()]
    try:
        run = connect(root).newest(" and ".join([*conditions, "attributes.status = 'FINISHED'"]))
    except Exception:  # whatever MLflow raises when it is down
        return None
    return f"run {run} had the same source, settings and code" if run else None


def _settings(root: Path, overrides: Sequence[str]) -> DictConfig:
    """params.yaml as a pipeline with these overrides would find it."""
    if overrides:
        return compose_config(overrides, root / "conf")
    loaded = OmegaConf.load(root / PARAMS_FILE)
    assert isinstance(loaded, DictConfig)
    return loaded
