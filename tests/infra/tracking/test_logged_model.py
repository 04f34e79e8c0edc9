"""A pipeline folder becomes a model that anyone can load from MLflow. test_serving.py asks one for images."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from mlflow import pyfunc
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from tokenbridge.infra.dvc import md5_as_dvc
from tokenbridge.infra.tracking.logged_model import READY, find_models
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import Store
from tokenbridge.infra.tracking.sync import sync_all

pytestmark = pytest.mark.pipeline


def test_a_logged_pipeline_loads_and_is_logged_once(root: Path, store: Store, pipeline_folder: Path) -> None:
    with Tracker.open("train@micro", "key", root, system_interval=0) as tracker:
        tracker.model(pipeline_folder, "micro")
    shutil.copytree(tracker.folder, root / "before")
    sync_all(root)
    assert not tracker.folder.exists()  # a refused record would stay
    (run,) = store.client.search_runs([store.experiment])
    uri = run.data.tags["model.micro"]
    (model,) = store.client.search_logged_models([store.experiment])
    assert (model.name, str(model.status), model.source_run_id) == ("micro", "READY", run.info.run_id)
    (found,) = find_models(store, md5_as_dvc(pipeline_folder))
    assert (found.model_id, found.status) == (model.model_id, READY)

    served = pyfunc.load_model(model.artifact_location, model_config={"max_rows": 3})
    assert served.metadata.signature.inputs is None  # else MLflow would drop unknown columns before our code sees them
    assert served.metadata.saved_input_example_info
    files = Path(download_artifacts(model.artifact_location)).rglob("*")
    assert not {".pkl", ".pickle", ".pt"} & {path.suffix for path in files}
    with pytest.raises(MlflowException, match="4 rows: ask for at most 3 at a time"):
        served.predict(pd.DataFrame({"class": ["Bag"] * 4}))

    (root / "before").rename(tracker.folder)
    sync_all(root)
    assert [m.model_id for m in store.client.search_logged_models([store.experiment])] == [uri.split("/")[-1]]
