"""The networks that a user may give: DINOv2's weights are loaded strictly, with positions as in its own code."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.conftest import LABEL_NAMES, draw_shapes
from tests.evaluation.shards import save_shards
from tests.evaluation.test_metrics import CONFIG
from tokenbridge.base.checks import FP32
from tokenbridge.base.files import sha256_file
from tokenbridge.base.loading import LoadError
from tokenbridge.evaluation import dinov2
from tokenbridge.evaluation.dinov2 import resample_positions
from tokenbridge.evaluation.features import ImageTensorDataset
from tokenbridge.evaluation.metrics import distance, statistics
from tokenbridge.evaluation.networks import given_networks, lite0
from tokenbridge.evaluation.protocol import protocol
from tokenbridge.evaluation.weight_files import check_networks
from tokenbridge.images.shards import ImageShards


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a ViT-S/14 as the released file has them: for 518 pixels, with the token of masks."""
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0).state_dict()
    state |= {name: torch.ones_like(gamma) for name, gamma in state.items() if name.endswith("gamma")}
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14_pretrain.pth"
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, path)
    return path


def test_dinov2_gives_a_distance_that_grows_with_noise(weights: Path) -> None:
    config = replace(CONFIG, dinov2_weights=str(weights))
    check_networks(config)
    (network,) = given_networks(config)
    assert (network.distance, network.weights) == ("fd_dinov2", sha256_file(weights))
    images, _ = draw_shapes(2)
    noisy = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    real, other = (statistics(network.extract(ImageTensorDataset(each)), network.layer) for each in (images, noisy))
    assert real["mu"].shape == (384,)
    assert abs(distance(real, real)) < 1e-3 < distance(other, real)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from([0, 1, 384]), st.lists(st.integers(0, 3), max_size=4))
def test_other_weights_are_refused_by_name(width: int, shape: list[int]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "other.pth"
        torch.save({"cls_token": torch.zeros(1, 1, width), "pos_embed": torch.zeros(shape)}, path)
        with pytest.raises(LoadError, match=r"other\.pth holds no DINOv2"):
            check_networks(replace(CONFIG, dinov2_weights=str(path)))


def test_positions_are_resampled_as_by_the_released_code() -> None:
    embeddings = torch.randn(1, 1 + 37 * 37, 5, generator=torch.Generator().manual_seed(0))
    found = resample_positions(embeddings)
    assert found.shape == (1, 1 + 16 * 16, 5)
    assert torch.equal(found[:, 0], embeddings[:, 0])
    maps = embeddings[:, 1:].reshape(1, 37, 37, 5).permute(0, 3, 1, 2)
    scale = float(16 + 0.1) / 37  # as dinov2/models/vision_transformer.py, interpolate_pos_encoding
    expected = torch.nn.functional.interpolate(maps, mode="bicubic", antialias=False, scale_factor=(scale, scale))
    torch.testing.assert_close(found[:, 1:], expected.permute(0, 2, 3, 1).view(1, -1, 5))
    assert dinov2.SIDE == 16 * dinov2.PATCH


def test_the_protocol_names_references_networks_and_the_balance_of_classes(tmp_path: Path) -> None:
    save_shards(tmp_path, {"test": draw_shapes(12)}, LABEL_NAMES)
    test = ImageShards(tmp_path, "test")
    found = protocol(np.array([0, 0, 1]), {"test": test}, [lite0(CONFIG, FP32)], seed=7)
    assert (found["images"], found["fewest_of_a_class"], found["most_of_a_class"], found["seed"]) == (3, 0, 2, 7)
    assert found["references"] == {"test": {"images": 12, "digest": test.digest}}
    (network,) = found["extractors"].values()
    assert network == {"weights": lite0(CONFIG, FP32).weights, "precision": "fp32", "batch_size": 64}
