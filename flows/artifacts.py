"""What flows show in Prefect's pages: names, links, tables, and pictures small enough to lie in its database."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact
from prefect.runtime import flow_run

from tokenbridge.ops.runs.pipeline_run import PipelineRun, title

THUMBNAIL = 600  # pixels; the picture is stored inside the artifact


def publish_run(run: PipelineRun) -> None:
    """The stages' outcomes and metrics as tables, and the sample grids as pictures."""
    outcomes = [{"stage": stage, "outcome": outcome} for stage, outcome in run.outcomes.items()]
    create_table_artifact(key="stages", table=outcomes, description="What DVC did with each stage")
    metrics = [{"metric": k, "value": v} for k, v in run.metrics().items()]
    create_table_artifact(key="metrics", table=metrics, description="Metrics of all stages")
    for grid in run.sample_grids():
        publish_picture(grid, f"samples-{grid.stem}", f"Samples of {grid.stem}")


def titled(parameter: str) -> Callable[[], str]:
    """A flow run's name: the flow's, and the overrides that its parameter of this name holds."""
    return lambda: title(str(flow_run.flow_name), flow_run.parameters[parameter])


def link_run(run: PipelineRun) -> None:
    """The way to the run in MLflow, which has it when the pipeline has ended."""
    if page := run.sync and run.sync.page:
        publish_link("mlflow-run", page, "This run in MLflow, with a run for each stage")


def publish_link(key: str, page: str, description: str) -> None:
    create_link_artifact(link=page, link_text=description, key=artifact_key(key), description=description)
    get_run_logger().info("%s: %s", description, page)


def publish_picture(picture: Path, key: str, description: str) -> None:
    create_image_artifact(image_url=as_data_url(picture), key=artifact_key(key), description=description)


def artifact_key(text: str) -> str:
    """``text`` in the characters that Prefect allows."""
    return text.replace("_", "-")


def as_data_url(picture: Path) -> str:
    """A thumbnail that the server can show without reaching our files."""
    image = Image.open(picture).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
