"""``tokenbridge evaluate``: measure any version of a registered model with any sampling settings."""

from collections.abc import Sequence
from pathlib import Path

from tokenbridge.infra.tracking.live import LiveSync
from tokenbridge.infra.tracking.registry import Version, open_registry
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.ops.promotion.measurement import Bench, Measurement, settings_for_versions
from tokenbridge.ops.promotion.registration import registered_name
from tokenbridge.stages.runtime import only_pipeline


def evaluate_version(
    root: Path, model: str, number: int | None = None, changes: Sequence[str] = ()
) -> tuple[Version, Measurement]:
    """Draw and measure samples of a version, and record that as a run of MLflow.

    Args:
        model: its key in params.yaml.
        number: the version's number; None: the newest.
        changes: settings for this once, such as ``generate.guidance_scale=3``.

    Raises:
        UserError: with a message that says what to fix, before anything is drawn.
    """
    config = settings_for_versions(root, model, changes)
    with open_registry(root) as registry, only_pipeline(root):
        version = registry.version(registered_name(config.data.name, model), number)
        bench = Bench(root, config, registry, model)
        bench.load(version)  # raises if it cannot be compared
        measured = bench.measure(version)
        with LiveSync(root), Tracker.open("evaluation", version.md5, root, system_interval=0) as tracker:
            tracker.tags({"model": version.name, "version": str(version.number)})
            tracker.params(bench.settings_record() | {"protocol": measured.protocol})
            tracker.metrics(measured.metrics)
            tracker.artifact(measured.picture)
    return version, measured
