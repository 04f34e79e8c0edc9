"""Stage ``train@<model>``: moments + quantizer -> one trained model, as a whole pipeline folder."""

import sys

from tokenbridge.data.shards import read_manifest
from tokenbridge.device import pick_device
from tokenbridge.files import write_csv, write_json
from tokenbridge.loading import load_whole
from tokenbridge.moments import Moments
from tokenbridge.pipeline import TokenBridgePipeline
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.stages.runtime import stage_run
from tokenbridge.training import train
from tokenbridge.vae import load_vae


def main() -> None:
    name = sys.argv[1]
    with stage_run(f"train@{name}") as run:
        quantizer = load_whole(DimensionwiseQuantizer, run.root / "models/quantizer")
        model, history = train(
            run.config.models[name],
            Moments(run.root / "data/moments"),
            quantizer,
            seed=run.config.seed,
            checkpoint=run.work / "checkpoint.pt",
            launcher=run.config.launcher,
            tracker=run.tracker,
            device=pick_device(run.config.launcher),
        )
        label_names = read_manifest(run.root / "data/images")["label_names"]
        pipeline = TokenBridgePipeline(load_vae(run.root / "models/vae"), model, quantizer, label_names)
        pipeline.save_pretrained(run.work / "pipeline")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        write_json(run.work / "metrics.json", {"loss": history[-1]["loss"], "parameters": parameters})
        write_csv(run.work / "loss.csv", history)
        run.publish(run.work / "metrics.json", f"reports/train/{name}.json")
        run.publish(run.work / "loss.csv", f"reports/train/{name}/loss.csv")
        run.publish(run.work / "pipeline", f"models/{name}")
        run.tracker.model(run.root / "models" / name, f"tokenbridge-{name}")


if __name__ == "__main__":
    main()
