"""The metrics are torch-fidelity's own, the right way round, and refuse counts that would mislead."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity import FeatureExtractorBase

from tests.evaluation.conftest import draw_shapes
from tokenbridge.base.checks import FP32
from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation import EvaluationError
from tokenbridge.evaluation.checks import check_counts, check_sample_count
from tokenbridge.evaluation.features import POOLED, Features, ImageTensorDataset, extract_features
from tokenbridge.evaluation.metrics import frechet_distance, sample_metrics
from tokenbridge.evaluation.networks import lite0

CONFIG = EvaluateConfig(
    feature_size=32,
    kid_subset_size=20,
    kid_subsets=5,
    inception_weights=None,
    dinov2_weights=None,
    inception_reference=None,
    precision="fp32",
)
SUFFIX = "efficientnet_lite0_32px"


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, deviation, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def reference_images() -> np.ndarray:
    return draw_shapes(60, seed=1)[0]


@pytest.fixture(scope="module")
def reference(reference_images: np.ndarray) -> Features:
    return extract_features(reference_images, 32)


class Lite0(FeatureExtractorBase):
    """Our features, as torch-fidelity asks for them."""

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (POOLED, "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else POOLED

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = extract_features(images.numpy(), 32)
        return tuple(features[name] for name in self.features_list)


def test_every_number_is_what_torch_fidelity_reports(reference_images: np.ndarray, reference: Features) -> None:
    generated_images = noisy(draw_shapes(45, seed=2)[0], 20)
    generated = extract_features(generated_images, 32)
    torch_fidelity.register_feature_extractor("lite0", Lite0)
    expected = torch_fidelity.calculate_metrics(
        input1=ImageTensorDataset(generated_images),
        input2=ImageTensorDataset(reference_images),
        feature_extractor="lite0",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=20,
        kid_subsets=5,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert sample_metrics(generated, reference, CONFIG) | lite0(CONFIG, FP32).scores(generated) == pytest.approx(
        {
            f"fd_{SUFFIX}": expected["frechet_inception_distance"],
            f"kid_{SUFFIX}": expected["kernel_inception_distance_mean"],
            f"kid_std_{SUFFIX}": expected["kernel_inception_distance_std"],
            f"is_{SUFFIX}": expected["inception_score_mean"],
            f"precision_{SUFFIX}": expected["precision"],
            f"recall_{SUFFIX}": expected["recall"],
        },
        rel=1e-6,
    )


def test_distance_to_itself_is_zero_and_grows_with_noise(reference_images: np.ndarray, reference: Features) -> None:
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-3)
    distances = [frechet_distance(extract_features(noisy(reference_images, s), 32), reference) for s in (5, 20, 60)]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_copies_of_one_real_image_have_precision_but_no_recall(
    reference_images: np.ndarray, reference: Features
) -> None:
    copies = noisy(np.repeat(reference_images[:1], 40, axis=0), 1)
    metrics = sample_metrics(extract_features(copies, 32), reference, CONFIG)
    assert metrics[f"precision_{SUFFIX}"] == 1
    assert metrics[f"recall_{SUFFIX}"] < 0.1


@pytest.mark.parametrize(
    ("samples", "images", "message"),
    [
        (19, {}, "kid_subset_size is 20 but there are only 19 samples"),
        (40, {"test": 19}, "kid_subset_size is 20 but there are only 19 test images"),
        (40, {"validation": 19}, "kid_subset_size is 20 but there are only 19 validation images"),
        (61, {}, "only 60 training images"),
    ],
)
def test_counts_that_cannot_be_evaluated_are_named(samples: int, images: dict[str, int], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        check_counts(CONFIG, samples, {"train": 60, "validation": 60, "test": 60} | images)


def test_enough_images_pass() -> None:
    check_counts(replace(CONFIG, kid_subset_size=60), 60, {"train": 60, "validation": 60, "test": 60})


def test_another_number_of_samples_than_asked_is_an_error() -> None:
    check_sample_count(2000, 2000)
    with pytest.raises(EvaluationError, match=r"1999 samples but generate\.samples is 2000"):
        check_sample_count(1999, 2000)
