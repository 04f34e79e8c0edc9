"""The classifier learns, and resumes bit for bit."""

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from tests.evaluation.conftest import LABEL_NAMES, draw_shapes
from tests.support import small_model
from tests.support.small_data import write_images
from tokenbridge.base.checkpoints import Checkpoints
from tokenbridge.base.protocols import Discard
from tokenbridge.classifier.network import ImageClassifier, class_accuracy
from tokenbridge.classifier.training import shift_images, train_classifier
from tokenbridge.config import ClassifierConfig
from tokenbridge.engine.loop import History

CONFIG = ClassifierConfig(width=8, epochs=6, batch_size=30, learning_rate=0.01, precision="fp32")
LAUNCHER = replace(small_model.LAUNCHER, batch_size=50, log_seconds=60, checkpoint_seconds=1e-9)


class Killed(Exception):
    """Stands for the end of the process."""


class Sink(Discard):
    """Ends training after ``stop`` metrics."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.seen = stop, 0

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.seen += 1
        if self.seen == self.stop:
            raise Killed


def run_training(checkpoint: Path, sink: Sink | None = None, epochs: int = 6) -> tuple[ImageClassifier, History]:
    return train_classifier(
        write_images(checkpoint.parent / uuid4().hex, *draw_shapes(180)),
        label_names=LABEL_NAMES,
        config=replace(CONFIG, epochs=epochs),
        seed=0,
        checkpoints=Checkpoints(checkpoint),
        launcher=LAUNCHER,
        tracker=sink or Sink(),
        device=torch.device("cpu"),
    )


def test_it_learns_to_tell_shapes_apart(tmp_path: Path) -> None:
    model, history = run_training(tmp_path / "checkpoint.pt", epochs=12)
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


def test_shifted_images_are_crops_of_the_padded_ones() -> None:
    images = torch.from_numpy(draw_shapes(20)[0])
    torch.manual_seed(0)
    shifted = shift_images(images)
    assert shifted.shape == images.shape
    centre = shifted[:, :, 1:-1, 1:-1]
    moves = [(y, x) for y in range(3) for x in range(3)]
    for image, moved in zip(images, centre, strict=True):
        assert any(torch.equal(moved, image[:, y : y + 30, x : x + 30]) for y, x in moves)
