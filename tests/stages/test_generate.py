"""Stage ``generate``, and the pictures that ``train`` draws: samples come from a pipeline in the precision as set."""

from pathlib import Path

import pytest
import torch

from tests.support.checkout import CHECKOUT
from tests.support.small_pipeline import build_pipeline
from tokenbridge.base.checks import Precision
from tokenbridge.config.params import compose_config, validate
from tokenbridge.images.shards import read_manifest
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.stages import generate
from tokenbridge.stages.context import METRICS, MetricFile, StageContext
from tokenbridge.stages.train import draw_grid
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("precision", TYPES)
def test_samples_and_pictures_are_drawn_in_the_precision_as_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: TokenBridgeTransformer,
    quantizer: DimensionwiseQuantizer,
    precision: Precision,
) -> None:
    settings = ["experiment=paper", "generate.samples=3", "generate.steps=2", "generate.grid_per_class=1"]
    config = validate(compose_config([*settings, f"generate.precision={precision}"], CHECKOUT / "conf"))
    pipeline, seen = build_pipeline(model, quantizer), set()
    for module in (model.token_in, pipeline.vae.post_quant_conv):
        module.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    monkeypatch.setattr(TokenBridgePipeline, "from_pretrained", lambda _: pipeline)
    context = StageContext(
        "generate@tiny", config, tmp_path, tmp_path, MetricFile(tmp_path / METRICS), torch.device("cpu")
    )
    generate.work(context)
    assert seen == {TYPES[precision]}
    about = read_manifest(tmp_path / "samples")
    assert (about["precision"], about["batch_size"]) == (precision, config.launcher.batch_size)
    seen.clear()
    pipeline.precision = None
    draw_grid(context, pipeline)
    assert seen == {TYPES[precision]}
