"""The classifier comes back from its folder as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.conftest import LABEL_NAMES, draw_shapes
from tests.evaluation.shards import save_shards
from tokenbridge.base.finite import NotFiniteError
from tokenbridge.classifier.network import (
    ImageClassifier,
    accuracy_by_class,
    load_classifier,
    predict,
    read_small,
    save_classifier,
)
from tokenbridge.evaluation import EvaluationError
from tokenbridge.images.shards import ImageShards


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


def test_accuracy_by_class_leaves_out_classes_that_do_not_occur() -> None:
    predicted, labels = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])
    assert accuracy_by_class(predicted, labels, LABEL_NAMES) == {"disc": 0.5, "square": 1.0}


def test_large_images_are_shrunk_and_small_ones_left_alone(tmp_path: Path) -> None:
    images, labels = draw_shapes(6)
    save_shards(tmp_path / "small", {"train": (images, labels)}, LABEL_NAMES)
    save_shards(tmp_path / "large", {"train": (images.repeat(2, 2).repeat(2, 3), labels)}, LABEL_NAMES)
    for name in ("small", "large"):
        shards = ImageShards(tmp_path / name, "train")
        np.testing.assert_array_equal(read_small(shards), images)
        np.testing.assert_array_equal(read_small(shards, range(2, 5)), images[2:5])


def test_logits_that_are_not_finite_are_no_class() -> None:
    model = ImageClassifier(width=8, label_names=LABEL_NAMES).eval()
    torch.nn.init.constant_(model.classify.bias, float("inf"))
    with pytest.raises(NotFiniteError, match=r"classifier's logits contain NaN or infinity: .*classify\.bias"):
        predict(model, draw_shapes(2)[0])
