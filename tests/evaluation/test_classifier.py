"""The classifier learns, resumes bit for bit, and comes back from its folder as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.conftest import LABEL_NAMES, draw_shapes
from tests.evaluation.shards import save_shards
from tokenbridge.config import ClassifierConfig, LauncherConfig
from tokenbridge.data.shards import ImageShards
from tokenbridge.evaluation import EvaluationError
from tokenbridge.evaluation.classifier import (
    ImageClassifier,
    accuracy_by_class,
    class_accuracy,
    load_classifier,
    predict,
    read_small,
    save_classifier,
    shift_images,
    train_classifier,
)
from tokenbridge.loop import History

CONFIG = ClassifierConfig(width=8, epochs=6, batch_size=30, learning_rate=0.01)
LAUNCHER = LauncherConfig(threads=0, batch_size=50, log_seconds=60, checkpoint_seconds=1e-9)


class Killed(Exception):
    """Stands for the end of the process."""


class Sink:
    """Takes metrics, and ends training after ``stop`` of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.seen = stop, 0

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.seen += 1
        if self.seen == self.stop:
            raise Killed


def run_training(checkpoint: Path, sink: Sink | None = None, epochs: int = 6) -> tuple[ImageClassifier, History]:
    images, labels = draw_shapes(180)
    return train_classifier(
        images,
        labels,
        label_names=LABEL_NAMES,
        config=replace(CONFIG, epochs=epochs),
        seed=0,
        checkpoint=checkpoint,
        launcher=LAUNCHER,
        tracker=sink or Sink(),
        device=torch.device("cpu"),
    )


def test_it_learns_to_tell_shapes_apart(tmp_path: Path) -> None:
    model, history = run_training(tmp_path / "checkpoint.pt")
    assert history[-1]["loss"] < history[0]["loss"]
    assert class_accuracy(model, *draw_shapes(90, seed=1)) > 0.9


def test_killed_and_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    whole, history = run_training(tmp_path / "whole.pt", epochs=1)
    with pytest.raises(Killed):
        run_training(tmp_path / "killed.pt", Sink(stop=5), epochs=1)
    resumed, resumed_history = run_training(tmp_path / "killed.pt", epochs=1)
    assert resumed_history == history
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_saved_classifier_predicts_the_same(tmp_path: Path) -> None:
    model = ImageClassifier(width=8, label_names=LABEL_NAMES).eval()
    save_classifier(model, tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    images, _ = draw_shapes(30)
    assert loaded.label_names == LABEL_NAMES
    np.testing.assert_array_equal(predict(loaded, images, batch_size=7), predict(model, images))


def test_a_folder_without_a_classifier_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no classifier"):
        load_classifier(tmp_path)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    save_classifier(ImageClassifier(width=8, label_names=LABEL_NAMES), tmp_path / "classifier")
    settings = tmp_path / "classifier/config.json"
    settings.write_text(settings.read_text().replace('"width": 8', '"width": 16'))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_classifier(tmp_path / "classifier")


def test_shifted_images_are_crops_of_the_padded_ones() -> None:
    images = torch.from_numpy(draw_shapes(20)[0])
    torch.manual_seed(0)
    shifted = shift_images(images)
    assert shifted.shape == images.shape
    centre = shifted[:, :, 1:-1, 1:-1]
    moves = [(y, x) for y in range(3) for x in range(3)]
    for image, moved in zip(images, centre, strict=True):
        assert any(torch.equal(moved, image[:, y : y + 30, x : x + 30]) for y, x in moves)


def test_accuracy_by_class_leaves_out_classes_that_do_not_occur() -> None:
    predicted, labels = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])
    assert accuracy_by_class(predicted, labels, LABEL_NAMES) == {"disc": 0.5, "square": 1.0}


def test_large_images_are_shrunk_and_small_ones_left_alone(tmp_path: Path) -> None:
    images, labels = draw_shapes(6)
    save_shards(tmp_path / "small", {"train": (images, labels)}, LABEL_NAMES)
    save_shards(tmp_path / "large", {"train": (images.repeat(2, 2).repeat(2, 3), labels)}, LABEL_NAMES)
    for name in ("small", "large"):
        read, read_labels = read_small(ImageShards(tmp_path / name, "train"))
        np.testing.assert_array_equal(read, images)
        np.testing.assert_array_equal(read_labels, labels)
