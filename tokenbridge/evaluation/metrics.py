"""Fréchet distance, KID, IS, precision and recall by torch-fidelity, on EfficientNet-Lite0's features.

All these metrics depend on the number of images. So the settings fix this number, and it is checked.
"""

from typing import Any

from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_featuresdict_to_metric
from torch_fidelity.metric_kid import kid_featuresdict_to_metric
from torch_fidelity.metric_prc import prc_featuresdict_to_metric

from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation.features import POOLED, Features
from tokenbridge.evaluation.inception import Statistics

PRECISION_BATCH = 2000  # limits the matrix of distances in memory; the result does not depend on it


def statistics(features: Features, layer: str) -> Statistics:
    """Return the mean and the covariance of a layer's features, as torch-fidelity computes them."""
    found: Statistics = fid_features_to_statistics(features[layer])
    return found


def distance(generated: Statistics, reference: Statistics) -> float:
    """Return the Fréchet distance of two Gaussians; 0 for equal ones."""
    return float(fid_statistics_to_metric(generated, reference, verbose=False)["frechet_inception_distance"])


def frechet_distance(generated: Features, reference: Features) -> float:
    """Return the Fréchet distance of two Gaussians fitted to the pooled features; 0 for equal sets."""
    return distance(statistics(generated, POOLED), statistics(reference, POOLED))


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
    kernel_distance = kid_featuresdict_to_metric(generated, reference, POOLED, **settings)
    coverage = prc_featuresdict_to_metric(generated, reference, POOLED, **settings)
    metrics = {
        "fd": frechet_distance(generated, reference),
        "kid": kernel_distance["kernel_inception_distance_mean"],
        "kid_std": kernel_distance["kernel_inception_distance_std"],
        "precision": coverage["precision"],
        "recall": coverage["recall"],
    }
    return {f"{name}_{extractor_name(config)}": value for name, value in metrics.items()}


def inception_score(features: Features, layer: str) -> float:
    """Return the IS of a set of images, by the layer of logits; it needs no reference."""
    return float(isc_featuresdict_to_metric(features, layer, verbose=False)["inception_score_mean"])


def extractor_name(config: EvaluateConfig) -> str:
    """Return the suffix of the names of metrics: extractor and size."""
    return f"efficientnet_lite0_{config.feature_size}px"
