"""The networks whose features are compared: EfficientNet-Lite0, and those whose weights the user gives."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenbridge.base.checks import FP32
from tokenbridge.base.files import sha256_file
from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation.features import BATCH_SIZE, POOLED, WEIGHTS_SHA256, Features, Images, extract_features
from tokenbridge.evaluation.inception import (
    Statistics,
    find_inception_weights,
    inception_features,
    load_reference_statistics,
)
from tokenbridge.evaluation.metrics import extractor_name, inception_score, statistics


@dataclass(frozen=True)
class Network:
    """A network, and what is measured by it.

    Attributes:
        distance: the name of the Fréchet distance in reports.
        layer: the features of the distance.
        extract: returns the features of images uint8 [3, H, W].
        weights: the SHA-256 of its weights.
        score: the name of the IS in reports, and its features; None: no IS is reported.
        reference_file: statistics to compare samples with; None: those of the test images.
    """

    distance: str
    layer: str
    extract: Callable[[Images], Features]
    weights: str
    precision: str = FP32
    score: tuple[str, str] | None = None
    reference_file: Path | None = None

    @property
    def protocol(self) -> dict[str, str | int]:
        """What decides the distance, besides the images."""
        return {"weights": self.weights, "precision": self.precision, "batch_size": BATCH_SIZE}

    def scores(self, features: Features) -> dict[str, float]:
        """Return the IS, by its name in reports, if one is reported."""
        return {self.score[0]: inception_score(features, self.score[1])} if self.score else {}

    def reference(self, images: Features | None) -> Statistics:
        """Return the statistics to compare samples with: those of the reference file, or else of ``images``."""
        if self.reference_file:
            return load_reference_statistics(self.reference_file)
        assert images is not None
        return statistics(images, self.layer)


def lite0(config: EvaluateConfig, precision: str) -> Network:
    """Return EfficientNet-Lite0, which computes in ``precision``."""
    name = extractor_name(config)
    extract = partial(extract_features, size=config.feature_size, precision=precision)
    return Network(f"fd_{name}", POOLED, extract, WEIGHTS_SHA256, precision, (f"is_{name}", "logits"))


def given_networks(config: EvaluateConfig) -> list[Network]:
    """Return the networks whose weights the settings name. They compute in float32."""
    found = []
    if config.inception_weights is not None:
        path, file = find_inception_weights(config.inception_weights), config.inception_reference
        extract = partial(inception_features, weights=path)
        score, reference = ("is_inception", "logits_unbiased"), Path(file).expanduser() if file else None
        found.append(Network("fid_inception", "2048", extract, sha256_file(path), FP32, score, reference))
    if config.dinov2_weights is not None:
        from tokenbridge.evaluation.dinov2 import dinov2_features  # imports diffusers, which few runs need here

        path = Path(config.dinov2_weights).expanduser()
        found.append(Network("fd_dinov2", POOLED, partial(dinov2_features, weights=path), sha256_file(path)))
    return found
