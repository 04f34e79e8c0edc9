"""Fréchet distance, KID, IS, precision and recall by torch-fidelity, on EfficientNet-Lite0's features.

All these metrics depend on the number of images. So the settings fix this number, and it is checked.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_featuresdict_to_metric
from torch_fidelity.metric_kid import kid_featuresdict_to_metric
from torch_fidelity.metric_prc import prc_featuresdict_to_metric

from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation.features import Features, extract_with
from tokenbridge.evaluation.inception import Statistics

PRECISION_BATCH = 2000  # limits the matrix of distances in memory; the result does not depend on it


def frechet_distance(generated: Features, reference: Features) -> float:
    """Return the Fréchet distance of two Gaussians fitted to the pooled features; 0 for equal sets."""
    stats = [fid_features_to_statistics(features["pooled"]) for features in (generated, reference)]
    return float(fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"])


def sample_metrics(generated: Features, reference: Features, config: EvaluateConfig) -> dict[str, float]:
    """Return the metrics of a set of images against a reference set. Their names contain extractor and size.

    Precision is the share of generated images that lie among the real ones. Recall is the share of real images that lie
    among the generated ones.
    """
    settings: dict[str, Any] = {
        "kid_subset_size": config.kid_subset_size,
        "kid_subsets": config.kid_subsets,
        "prc_batch_size": PRECISION_BATCH,
        "save_cpu_ram": True,
        "verbose": False,
    }
    kernel_distance = kid_featuresdict_to_metric(generated, reference, "pooled", **settings)
    coverage = prc_featuresdict_to_metric(generated, reference, "pooled", **settings)
    metrics = {
        "fd": frechet_distance(generated, reference),
        "kid": kernel_distance["kernel_inception_distance_mean"],
        "kid_std": kernel_distance["kernel_inception_distance_std"],
        "precision": coverage["precision"],
        "recall": coverage["recall"],
    }
    return {f"{name}_{extractor_name(config)}": value for name, value in metrics.items()}


def inception_score(generated: Features, config: EvaluateConfig) -> dict[str, float]:
    """Return the IS of a set of images; it needs no reference."""
    score = isc_featuresdict_to_metric(generated, "logits", save_cpu_ram=True, verbose=False)
    return {f"is_{extractor_name(config)}": score["inception_score_mean"]}


def extractor_name(config: EvaluateConfig) -> str:
    """Return the suffix of the names of metrics: extractor and size."""
    return f"efficientnet_lite0_{config.feature_size}px"


def inception_features(images: Dataset[Tensor], weights: Path, batch_size: int = 64) -> Features:
    """Return Inception's ``2048`` and ``logits_unbiased`` of uint8 images [3, H, W].

    It takes one second for about 7 images on 2 cores. ``weights`` must have passed ``check_inception_weights``, because
    torch-fidelity unpickles it.
    """
    settings: dict[str, Any] = {"batch_size": batch_size, "feature_extractor_weights_path": str(weights)}
    return extract_with("inception-v3-compat", ("2048", "logits_unbiased"), images, **settings)


def inception_statistics(features: Features) -> Statistics:
    statistics: Statistics = fid_features_to_statistics(features["2048"])
    return statistics


def inception_metrics(generated: Features, reference: Statistics) -> dict[str, float]:
    """Return the real FID against the reference's statistics, and the real IS."""
    distance = fid_statistics_to_metric(inception_statistics(generated), reference, verbose=False)
    score = isc_featuresdict_to_metric(generated, "logits_unbiased", verbose=False)
    return {
        "fid_inception": float(distance["frechet_inception_distance"]),
        "is_inception": float(score["inception_score_mean"]),
    }
