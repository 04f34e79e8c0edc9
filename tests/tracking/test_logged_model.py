"""A pipeline folder becomes a model that anyone can load from MLflow and ask for images."""

import base64
import io
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL
from mlflow import pyfunc
from PIL import Image

from tests.conftest import small_model
from tokenbridge.pipeline import TokenBridgePipeline
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.tracking.spool import Tracker
from tokenbridge.tracking.store import Store
from tokenbridge.tracking.sync import sync_all

DIMENSIONS, LEVELS = 2, 4


@pytest.fixture
def pipeline_folder(tmp_path: Path) -> Path:
    """A pipeline of random weights: 8 x 8 images of two classes."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=DIMENSIONS,
        norm_num_groups=4,
        sample_size=8,
    )
    quantizer = DimensionwiseQuantizer.build(
        loc=torch.zeros(DIMENSIONS),
        scale=torch.ones(DIMENSIONS),
        levels=torch.linspace(-2, 2, LEVELS).repeat(DIMENSIONS, 1),
        dimension_order=torch.arange(DIMENSIONS),
    )
    transformer = small_model(
        dimensions=DIMENSIONS, levels=LEVELS, num_classes=2, width=16, head_width=16, head_depth=1
    )
    folder = tmp_path / "models" / "micro"
    TokenBridgePipeline(vae, transformer, quantizer, ["Bag", "Sneaker"]).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_logged_pipeline_loads_and_generates(root: Path, store: Store, pipeline_folder: Path) -> None:
    with Tracker.open("train@micro", "key", root, system_interval=0) as tracker:
        tracker.model(pipeline_folder, "micro")
    report = sync_all(root, keep=True)
    assert report.refused == []
    (run,) = store.client.search_runs([store.experiment])
    uri = run.data.tags["model.micro"]
    (model,) = store.client.search_logged_models([store.experiment])
    assert (model.name, str(model.status), model.source_run_id) == ("micro", "READY", run.info.run_id)

    served = pyfunc.load_model(model.artifact_location)
    rows = pd.DataFrame({"class": ["Sneaker", "1", "0"], "seed": [7, 7, 8], "guidance_scale": [1.5, 1.5, 1.0]})
    images = served.predict(rows)
    assert images[0] == images[1] != images[2]
    assert Image.open(io.BytesIO(base64.b64decode(images[0]))).size == (8, 8)
    with pytest.raises(ValueError, match="there is no class 'Hat': choose one of 0 Bag, 1 Sneaker"):
        served.predict(rows.assign(**{"class": "Hat"}))

    (tracker.folder / "state.json").unlink()
    sync_all(root)
    assert [m.model_id for m in store.client.search_logged_models([store.experiment])] == [uri.split("/")[-1]]
