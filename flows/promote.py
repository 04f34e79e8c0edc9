"""Promotion as a Prefect flow: the decision with its reasons and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.artifacts import artifact_key, publish_link, publish_picture
from tokenbridge.base.errors import UserError
from tokenbridge.infra.tracking.pages import version_page
from tokenbridge.infra.tracking.store import tracking_uri
from tokenbridge.ops.promotion.promote import promote as decide
from tokenbridge.ops.promotion.promote import rollback as go_back


@flow(name="promote", flow_run_name="promote {model}")
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
    folder = Path(root).resolve()
    try:
        decision = decide(folder, model, number=version, dry_run=dry_run, changes=tuple(changes))
    except UserError as error:
        return Failed(message=str(error))
    create_markdown_artifact(
        key=artifact_key(f"promotion-{model}"), markdown=decision.report(), description=decision.summary()
    )
    page = version_page(tracking_uri(folder), decision.model, decision.candidate)
    publish_link(f"promotion-{model}-version", page, f"Version {decision.candidate} in MLflow's registry")
    for picture in decision.pictures:
        publish_picture(picture, f"promotion-{model}-{picture.stem}", decision.summary())
    return Completed(name=decision.outcome.capitalize(), message=decision.summary())


@flow(name="rollback", flow_run_name="rollback {model}")
def rollback(model: str, veto: str | None = None, root: str = ".") -> State[Any]:
    """Bring the champion before this one back.

    Args:
        model: its key in params.yaml, such as tiny.
        veto: who will not have the one that steps down promoted again, and why; none: it may come back.
        root: the repository.
    """
    try:
        return Completed(message=go_back(Path(root).resolve(), model, veto))
    except UserError as error:
        return Failed(message=str(error))
