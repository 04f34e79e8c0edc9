"""``tokenbridge evaluate``: measure any version of a registered model with any sampling settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenbridge.base.files import atomic_path
from tokenbridge.config.params import load_params
from tokenbridge.infra.tracking.registry import open_registry
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.sync import LiveSync
from tokenbridge.ops.promotion.figures import sample_grid
from tokenbridge.ops.promotion.measurement import Bench
from tokenbridge.ops.promotion.registration import registered_name
from tokenbridge.stages.runtime import only_pipeline

STAGE = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a version, and the settings that they were measured with."""

    version: str
    metrics: dict[str, float]
    settings: dict[str, Any]
    picture: Path


def evaluate_version(root: Path, model: str, number: int | None = None, changes: Sequence[str] = ()) -> Evaluation:
    """Draw and measure samples of a version, and record that as a run of MLflow.

    Args:
        model: its key in params.yaml.
        number: the version's number; None: the newest.
        changes: settings for this once, such as ``generate.guidance_scale=3``.

    Raises:
        UserError: with a message that says what to fix, before anything is drawn.
    """
    config = load_params(root, changes)
    with open_registry(root) as registry, only_pipeline(root):
        version = registry.version(registered_name(config.data.name, model), number)
        bench = Bench(root, config)
        measured = bench.measure(bench.load_version(registry, model, version), version.md5)
        picture = bench.folder / f"{version.name}-{version.number}.png"
        with atomic_path(picture) as target:
            sample_grid(measured.samples, config.generate.grid_per_class).save(target, "PNG")
        with LiveSync(root), Tracker.open(STAGE, version.md5, root, system_interval=0) as tracker:
            tracker.tags({"model": version.name, "version": str(version.number)})
            tracker.params(bench.settings_record())
            tracker.metrics(measured.metrics)
            tracker.artifact(picture)
    return Evaluation(str(version), measured.metrics, bench.settings_record(), picture)
