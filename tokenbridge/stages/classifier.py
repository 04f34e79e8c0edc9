"""Stage ``classifier``: images -> a small classifier of real images, for the class accuracy of generated ones."""

from tokenbridge.checkpoints import Checkpoints
from tokenbridge.data.shards import ImageShards
from tokenbridge.evaluation.classifier import class_accuracy, read_small, save_classifier
from tokenbridge.evaluation.classifier_training import train_classifier
from tokenbridge.files import write_csv, write_json
from tokenbridge.stages.job import Job, compute
from tokenbridge.stages.runtime import stage_run


def main() -> None:
    with stage_run("classifier") as run:
        compute(run, work, alone=True)
        run.publish(run.work / "metrics.json", "reports/classifier.json")
        run.publish(run.work / "loss.csv", "reports/classifier/loss.csv")
        run.publish(run.work / "classifier", "models/classifier")


def work(job: Job) -> None:
    """Write ``classifier``, ``metrics.json`` and ``loss.csv``."""
    folder = job.root / "data/images"
    train, test = ImageShards(folder, "train"), ImageShards(folder, "test")
    model, history = train_classifier(
        read_small(train),
        train.labels,
        label_names=train.label_names,
        config=job.config.classifier,
        seed=job.config.seed,
        checkpoints=Checkpoints(job.work / "checkpoints"),
        launcher=job.config.launcher,
        tracker=job.tracker,
        device=job.device,
    )
    accuracy = class_accuracy(model, read_small(test), test.labels)
    print(f"classifier: {accuracy:.2%} of {len(test):,} test images", flush=True)
    save_classifier(model, job.work / "classifier")
    write_json(job.work / "metrics.json", {"test_accuracy": accuracy, "loss": history[-1]["loss"]})
    write_csv(job.work / "loss.csv", history)


if __name__ == "__main__":
    main()
