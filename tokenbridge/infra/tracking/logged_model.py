"""Log a pipeline folder as a self-contained MLflow model, which ``mlflow models serve`` can serve.

This module uses MLflow's parts instead of ``mlflow.pyfunc.log_model``. That function would run the model on its
example, change the process's tracking URI and end the run that it logs to.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from mlflow import pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

import tokenbridge
from tokenbridge.infra.dvc import md5_as_dvc
from tokenbridge.infra.tracking.store import Store

READY = LoggedModelStatus.READY
MODEL_MD5 = "model.md5"  # tag: the model's digest, as in dvc.lock
MAX_ROWS, MAX_STEPS = 64, 256  # per request; `model_config` of pyfunc.load_model and models serve overrides them
PACKAGE = Path(tokenbridge.__file__).parent
SERVED_MODEL = PACKAGE / "ops/serving/served_model.py"
# the packages that tokenbridge.sampling.pipeline imports; our own code is part of the model
REQUIREMENTS = ("mlflow", "torch", "diffusers", "safetensors", "numpy", "pillow", "pandas", "hydra-core")
SIGNATURE = ModelSignature(outputs=Schema([ColSpec("string")]))  # served_model.py says why it names no columns
EXAMPLE = {"class": "0", "seed": 0, "guidance_scale": 2.0, "temperature": 1.0}


def log_model(store: Store, run_id: str, pipeline: Path, name: str) -> str:
    """Log the folder ``pipeline`` as model ``name`` of a run, and return the model's id.

    This may be repeated. A model that a killed call has logged in part is completed.
    """
    md5 = md5_as_dvc(pipeline)
    model = next((model for model in find_models(store, md5) if model.source_run_id == run_id), None)
    model = model or store.client.create_logged_model(
        store.experiment, name, source_run_id=run_id, tags={MODEL_MD5: md5}, model_type="tokenbridge"
    )
    if model.status != READY:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_model(pipeline, folder, run_id, model.model_id)
            store.client.log_model_artifacts(model.model_id, str(folder))
        store.client.finalize_logged_model(model.model_id, READY)
    store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def find_models(store: Store, md5: str) -> list[LoggedModel]:
    """Return the logged models of this digest, from any run."""
    return list(store.client.search_logged_models([store.experiment], f"tags.`{MODEL_MD5}` = '{md5}'"))


def save_model(pipeline: Path, folder: Path, run_id: str, model_id: str) -> None:
    pyfunc.save_model(
        str(folder),
        python_model=str(SERVED_MODEL),
        artifacts={"pipeline": str(pipeline)},
        code_paths=[str(PACKAGE)],
        signature=SIGNATURE,
        input_example=pd.DataFrame([EXAMPLE]),
        model_config={"max_rows": MAX_ROWS, "max_steps": MAX_STEPS},
        pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
        mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
    )
