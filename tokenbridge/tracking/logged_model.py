"""A pipeline folder as an MLflow model: self-contained, served by ``mlflow models serve``.

Built from MLflow's parts instead of ``mlflow.pyfunc.log_model``, which runs the model on its example, changes the
process's tracking URI and ends the run it logs to.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from mlflow import pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

from tokenbridge.tracking.store import Store

PACKAGE = Path(__file__).parents[1]
SERVED_MODEL = Path(__file__).with_name("served_model.py")
# what tokenbridge.pipeline imports; our own code travels with the model
REQUIREMENTS = ("mlflow", "torch", "diffusers", "safetensors", "numpy", "pillow", "pandas", "hydra-core")
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "class"), ColSpec("long", "seed"), ColSpec("double", "guidance_scale")]),
    outputs=Schema([ColSpec("string")]),
)


def log_model(store: Store, run_id: str, pipeline: Path, name: str, mark: str) -> str:
    """Log the folder ``pipeline`` as model ``name`` of a run, and return the model's id.

    Args:
        mark: identifies this model within its run; a model half logged under it is completed, not logged again.
    """
    model = find_model(store, run_id, mark) or store.client.create_logged_model(
        store.experiment, name, source_run_id=run_id, tags={"spool.file": mark}, model_type="tokenbridge"
    )
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_model(pipeline, folder, run_id, model.model_id)
            store.client.log_model_artifacts(model.model_id, str(folder))
        store.client.finalize_logged_model(model.model_id, "READY")
    store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def find_model(store: Store, run_id: str, mark: str) -> LoggedModel | None:
    found = store.client.search_logged_models(
        [store.experiment], f"source_run_id = '{run_id}' and tags.`spool.file` = '{mark}'"
    )
    return found[0] if found else None


def save_model(pipeline: Path, folder: Path, run_id: str, model_id: str) -> None:
    pyfunc.save_model(
        str(folder),
        python_model=str(SERVED_MODEL),
        artifacts={"pipeline": str(pipeline)},
        code_paths=[str(PACKAGE)],
        signature=SIGNATURE,
        input_example=pd.DataFrame([{"class": "0", "seed": 0, "guidance_scale": 1.5}]),
        pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
        mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
    )
