"""Versions of the registry as Prefect flows: measured, promoted with reasons and pictures, and rolled back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.artifacts import artifact_key, publish_link, publish_picture
from flows.failures import failing_with_its_message
from tokenbridge.config.project import find_project
from tokenbridge.infra.tracking.pages import version_page
from tokenbridge.infra.tracking.uri import tracking_uri
from tokenbridge.ops.promotion import promote as promotion
from tokenbridge.ops.promotion.version_evaluation import evaluate_version


@flow(name="evaluate", flow_run_name="evaluate {model}")
@failing_with_its_message
def evaluate(model: str, version: int | None = None, changes: Sequence[str] = (), root: str = ".") -> State[Any]:
    """Draw and measure samples of a version of the registry, against this project's validation images.

    Args:
        model: its key in params.yaml, such as tiny.
        version: of the registered model; none: the newest.
        changes: settings for this once, such as ["generate.guidance_scale=3"].
        root: the repository.
    """
    chosen, found = evaluate_version(find_project(Path(root)), model, version, changes)
    rows = [{"metric": name, "value": value} for name, value in found.metrics.items()]
    create_table_artifact(key=artifact_key(f"evaluation-{model}"), table=rows, description=f"Metrics of {chosen}")
    publish_picture(found.picture, f"evaluation-{model}-samples", f"Samples of {chosen}")
    return Completed(message=f"{chosen} measured")


@flow(name="promote", flow_run_name="promote {model}")
@failing_with_its_message
def promote(
    model: str, version: int | None = None, dry_run: bool = False, changes: Sequence[str] = (), root: str = "."
) -> State[Any]:
    """Measure a version against the champion, and make it the champion if it passes every gate of conf/promotion.

    Args:
        model: its key in params.yaml, such as tiny.
        version: of the registered model; none: the newest.
        dry_run: decide, and change nothing.
        changes: settings for this once, such as ["promotion.max_slowdown=2"].
        root: the repository.

    Returns:
        A state named Promoted, Refused or Unchanged; a failed one if nothing could be decided.
    """
    folder = find_project(Path(root))
    decision = promotion.promote(folder, model, number=version, dry_run=dry_run, changes=tuple(changes))
    create_markdown_artifact(
        key=artifact_key(f"promotion-{model}"), markdown=decision.report(), description=decision.summary()
    )
    page = version_page(tracking_uri(folder), decision.model, decision.candidate)
    publish_link(f"promotion-{model}-version", page, f"Version {decision.candidate} in MLflow's registry")
    for picture in decision.pictures:
        publish_picture(picture, f"promotion-{model}-{picture.stem}", decision.summary())
    return Completed(name=decision.outcome.capitalize(), message=decision.summary())


@flow(name="rollback", flow_run_name="rollback {model}")
@failing_with_its_message
def rollback(model: str, veto: str | None = None, root: str = ".") -> State[Any]:
    """Bring the champion before this one back.

    Args:
        model: its key in params.yaml, such as tiny.
        veto: who will not have the one that steps down promoted again, and why; none: it may come back.
        root: the repository.
    """
    return Completed(message=promotion.rollback(find_project(Path(root)), model, veto))
