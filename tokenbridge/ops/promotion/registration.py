"""Registration of the models that a pipeline run evaluated, if dvc.lock records the model with that evaluation.

Each one is recorded as a run ``register@<model>`` in the spool, so that MLflow receives it later if it is down.
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json, sha256_file
from tokenbridge.config.params import flatten
from tokenbridge.images.shards import read_manifest
from tokenbridge.infra.dvc import LOCK_FILE, md5_as_dvc, read_lock
from tokenbridge.infra.git import git_tags
from tokenbridge.infra.lineage import belong_together
from tokenbridge.infra.tracking.logged_model import MODEL_MD5
from tokenbridge.infra.tracking.recorded import LOCK_DIGEST
from tokenbridge.infra.tracking.registry import EVALUATION, METRIC, is_registered
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.ops.exchange.model_card import CARD, PICTURE, render_card
from tokenbridge.ops.promotion import PromotionError

logger = logging.getLogger(__name__)

REPORT = "reports/evaluate/{}.json"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of this project with the report of its evaluation.

    Attributes:
        tags: the tags of the version, including the digests of the model and of the report.
    """

    key: str
    root: Path
    name: str  # of the registered model
    tags: dict[str, str]
    metrics: dict[str, float]


def registered_name(data: str, model: str) -> str:
    """Return ``tokenbridge-<data>-<model>``, with - for each character that MLflow does not accept."""
    return re.sub(r"[^\w.-]", "-", f"tokenbridge-{data}-{model}", flags=re.ASCII)


def register_models(root: Path, models: Iterable[str], parent: str) -> None:
    """Record every model that is not yet a version with this evaluation, under the pipeline's run ``parent``.

    If a model cannot be registered, print the reason and go on, so that a successful pipeline does not fail.
    """
    for model in models:
        try:
            evaluated = read_evaluated(root, model)
        except (UserError, OSError) as error:
            logger.info(f"registry: {model} is not registered: {error}")
            continue
        if not is_registered(root, evaluated.name, evaluated.tags):
            record_version(evaluated, parent)


def read_evaluated(root: Path, model: str) -> EvaluatedModel:
    """Return the model with its evaluation, both as dvc.lock records them.

    Raises:
        PromotionError: if one of them is missing or changed, or the evaluation is not of this model.
    """
    lock, train, evaluate = read_lock(root), f"train@{model}", f"evaluate@{model}"
    if train not in lock or not belong_together(lock, evaluate, train):
        raise PromotionError(f"{LOCK_FILE} records no evaluation of it: `tokenbridge repro` makes one")
    outs = lock[train].outs | lock[evaluate].outs
    folder, report_file = f"models/{model}", REPORT.format(model)
    for path in (folder, report_file):
        if not (root / path).exists() or md5_as_dvc(root / path) != outs[path]:
            raise PromotionError(f"{path} is not what {LOCK_FILE} records: `dvc checkout` restores it")
    report = read_json(root / report_file)
    metrics = {name: float(value) for name, value in report.items() if isinstance(value, int | float)}
    data = read_manifest(root / "data/images")
    tags = {
        MODEL_MD5: outs[folder],
        EVALUATION: outs[report_file],
        "data.name": data["name"],
        "data.digest": data["digest"],
        LOCK_DIGEST: sha256_file(root / LOCK_FILE),
        **{name: value for name, value in git_tags(root).items() if name.startswith("git.")},
        **{name: str(value) for name, value in flatten(lock[f"generate@{model}"].params).items()},
        **{f"{METRIC}{name}": f"{value:.6g}" for name, value in metrics.items()},
    }
    return EvaluatedModel(model, root, registered_name(data["name"], model), tags, metrics)


def record_version(model: EvaluatedModel, parent: str) -> None:
    """Record the version in a run of its own.

    Spools are sent oldest first, so the training run, which logs the model, is sent before this one.
    Its artifacts are the model card, the picture of the samples and the report.
    """
    stage, root, picture = f"register@{model.key}", model.root, model.root / f"reports/samples/{model.key}.png"
    with Tracker.open(stage, model.tags[MODEL_MD5], root, parent, system_interval=0) as tracker:
        tracker.tags({name: value for name, value in model.tags.items() if not name.startswith(METRIC)})
        tracker.artifact(root / REPORT.format(model.key))
        with tempfile.TemporaryDirectory() as scratch:
            card, description = _cards(model)
            (Path(scratch) / CARD).write_text(card, encoding="utf-8", newline="\n")
            tracker.artifact(Path(scratch) / CARD)
            if picture.exists():
                shutil.copyfile(picture, Path(scratch) / PICTURE)
                tracker.artifact(Path(scratch) / PICTURE)
        tracker.version(
            root / "models" / model.key,
            name=model.name,
            model=f"tokenbridge-{model.key}",
            tags=model.tags,
            metrics=model.metrics,
            description=description,
        )
    logger.info(f"registry: {model.name} gets this model and its evaluation")


def _cards(model: EvaluatedModel) -> tuple[str, str]:
    """Return the model card, and its text for a page that cannot show the picture."""
    # torch is slow to import, and usually there is nothing to register
    from tokenbridge.ops.exchange.export import model_facts

    try:
        facts = model_facts(model.root, model.key)
    except UserError as error:  # such as imported weights, whose makers must write the card
        return (f"# {model.name}\n\nNo model card: {error}\n",) * 2
    where = f"The picture of its samples is the artifact `{PICTURE}` of the run that registered it."
    return render_card(facts), render_card(replace(facts, no_picture=where)).split("---\n", 2)[-1].strip()
