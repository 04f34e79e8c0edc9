"""Stage ``classifier``: images -> a small classifier of real images, for the class accuracy of generated ones."""

from tokenbridge.data.shards import ImageShards
from tokenbridge.device import pick_device
from tokenbridge.evaluation.classifier import class_accuracy, read_small, save_classifier
from tokenbridge.evaluation.classifier_training import train_classifier
from tokenbridge.files import write_csv, write_json
from tokenbridge.stages.runtime import stage_run


def main() -> None:
    with stage_run("classifier") as run:
        folder = run.root / "data/images"
        train, test = ImageShards(folder, "train"), ImageShards(folder, "test")
        model, history = train_classifier(
            *read_small(train),
            label_names=train.label_names,
            config=run.config.classifier,
            seed=run.config.seed,
            checkpoint=run.work / "checkpoint.pt",
            launcher=run.config.launcher,
            tracker=run.tracker,
            device=pick_device(run.config.launcher),
        )
        accuracy = class_accuracy(model, *read_small(test))
        print(f"classifier: {accuracy:.2%} of {len(test):,} test images", flush=True)
        save_classifier(model, run.work / "classifier")
        write_json(run.work / "metrics.json", {"test_accuracy": accuracy, "loss": history[-1]["loss"]})
        write_csv(run.work / "loss.csv", history)
        run.publish(run.work / "metrics.json", "reports/classifier.json")
        run.publish(run.work / "loss.csv", "reports/classifier/loss.csv")
        run.publish(run.work / "classifier", "models/classifier")


if __name__ == "__main__":
    main()
