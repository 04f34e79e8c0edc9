"""A registered version measured with any sampling settings, as a Prefect flow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.artifacts import artifact_key, publish_picture
from tokenbridge.base.errors import UserError
from tokenbridge.ops.promotion.version_evaluation import evaluate_version


@flow(name="evaluate", flow_run_name="evaluate {model}")
def evaluate(model: str, version: int | None = None, changes: Sequence[str] = (), root: str = ".") -> State[Any]:
    """Draw and measure samples of a version of the registry, against this project's validation images.

    Args:
        model: its key in params.yaml, such as tiny.
        version: of the registered model; none: the newest.
        changes: settings for this once, such as ["generate.guidance_scale=3"].
        root: the repository.
    """
    try:
        found = evaluate_version(Path(root).resolve(), model, version, changes)
    except UserError as error:
        return Failed(message=str(error))
    rows = [{"metric": name, "value": value} for name, value in found.metrics.items()]
    create_table_artifact(
        key=artifact_key(f"evaluation-{model}"), table=rows, description=f"Metrics of {found.version}"
    )
    publish_picture(found.picture, f"evaluation-{model}-samples", f"Samples of {found.version}")
    return Completed(message=f"{found.version} measured")
