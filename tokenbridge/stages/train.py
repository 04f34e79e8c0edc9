"""Stage ``train@<model>``: tokens of the training images -> one model, as a whole pipeline folder.

A model with ``pretrained`` set is taken from there instead, such as one that `tokenbridge import` wrote.
"""

import sys
from pathlib import Path

from tokenbridge.config import MOMENTS, ConfigError, ModelConfig
from tokenbridge.data.shards import read_manifest
from tokenbridge.device import pick_device
from tokenbridge.files import atomic_write_text, write_csv, write_json
from tokenbridge.loading import load_whole
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.moments import Moments
from tokenbridge.pipeline import TokenBridgePipeline
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.stages.runtime import StageRun, stage_run
from tokenbridge.tokens import StoredTokens
from tokenbridge.training import token_shape, train
from tokenbridge.training_data import FreshTokens, TrainingData
from tokenbridge.vae import load_vae


def main() -> None:
    name = sys.argv[1]
    with stage_run(f"train@{name}") as run:
        quantizer = load_whole(DimensionwiseQuantizer, run.root / "models/quantizer")
        config, data = run.config.models[name], _training_data(run, quantizer)
        if config.pretrained is None:
            pipeline = _train(run, config, data, quantizer)
        else:
            pipeline = _take(run, Path(config.pretrained).expanduser(), token_shape(data, quantizer))
        pipeline.save_pretrained(run.work / "pipeline")
        run.publish(run.work / "metrics.json", f"reports/train/{name}.json")
        run.publish(run.work / "loss.csv", f"reports/train/{name}/loss.csv")
        run.publish(run.work / "pipeline", f"models/{name}")
        run.tracker.model(run.root / "models" / name, f"tokenbridge-{name}")


def _training_data(run: StageRun, quantizer: DimensionwiseQuantizer) -> TrainingData:
    folder = run.root / "data" / run.config.train_on
    if run.config.train_on == MOMENTS:
        return FreshTokens(Moments(folder), quantizer)
    return StoredTokens(folder, run.root / "models/quantizer")


def _train(
    run: StageRun, config: ModelConfig, data: TrainingData, quantizer: DimensionwiseQuantizer
) -> TokenBridgePipeline:
    model, history = train(
        config,
        data,
        quantizer,
        checkpoint=run.work / "checkpoint.pt",
        launcher=run.config.launcher,
        tracker=run.tracker,
        device=pick_device(run.config.launcher),
    )
    write_json(run.work / "metrics.json", {"loss": history[-1]["loss"], "parameters": _parameters(model)})
    write_csv(run.work / "loss.csv", history)
    label_names = read_manifest(run.root / "data/images")["label_names"]
    return TokenBridgePipeline(load_vae(run.root / "models/vae"), model, quantizer, label_names)


def _take(run: StageRun, folder: Path, shape: dict[str, int]) -> TokenBridgePipeline:
    """The pipeline in ``folder``, if it has the ``shape`` of this project's tokens."""
    pipeline = TokenBridgePipeline.from_pretrained(folder)
    config = pipeline.transformer.config
    unlike = [f"{name} is {config[name]}, not {value}" for name, value in shape.items() if config[name] != value]
    if unlike:
        raise ConfigError(
            f"models.{sys.argv[1]}.pretrained: {folder} does not fit data and quantizer: {'; '.join(unlike)}. "
            "Choose the settings of data, vae and quantizer that it was made with"
        )
    write_json(run.work / "metrics.json", {"parameters": _parameters(pipeline.transformer)})
    atomic_write_text(run.work / "loss.csv", "step,images,loss\n")  # DVC wants the file; nothing was trained
    return pipeline


def _parameters(model: TokenBridgeTransformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
