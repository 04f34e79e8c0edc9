"""The choice of sampling settings for a trained model, by the Fréchet distance of samples to the validation images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokenbridge.base.device import best_device, resolve_precision
from tokenbridge.config.params import load_params
from tokenbridge.evaluation.features import ImageTensorDataset, ShardImageDataset
from tokenbridge.evaluation.inception import Statistics
from tokenbridge.evaluation.metrics import distance, statistics
from tokenbridge.evaluation.networks import lite0
from tokenbridge.images import VALIDATION
from tokenbridge.images.shards import ImageShards
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.samples import draw_samples

logger = logging.getLogger(__name__)

SAMPLES = 1000  # that are drawn with each choice of settings


def coordinate_search(
    measure: Callable[[dict[str, float]], float], values: Mapping[str, Sequence[float]], start: Mapping[str, float]
) -> dict[str, float]:
    """Return the values whose measure is least: of one setting after the other, with the others at their best so far.

    Nothing is measured twice.

    Args:
        start: the first value of each setting.
    """
    best = dict(start)

    @cache
    def measured(*tried: float) -> float:
        return measure(dict(zip(start, tried, strict=True)))

    for setting, choices in values.items():
        results = {value: measured(*(best | {setting: value}).values()) for value in choices}
        best[setting] = min(results, key=results.__getitem__)
        logger.info(f"{setting}: " + ", ".join(f"{value:g} gives {found:.2f}" for value, found in results.items()))
    return best


class SampledDistance:
    """The Fréchet distance of ``samples`` samples of a model, as a function of settings of ``generate``.

    Args:
        folder: of a project whose model is trained.
        name: of the model.
    """

    def __init__(self, folder: Path, name: str, samples: int = SAMPLES) -> None:
        self.config, self.samples, device = load_params(folder), samples, best_device()
        self.pipeline = TokenBridgePipeline.from_pretrained(folder / "models" / name).to(device)
        self.pipeline.precision = self.config.generate.precision
        evaluate = self.config.evaluate
        self.network = lite0(evaluate, resolve_precision(evaluate.precision, device))
        self.reference = self._statistics(ShardImageDataset(ImageShards(folder / "data/images", VALIDATION)))

    def __call__(self, settings: Mapping[str, float]) -> float:
        changed: dict[str, Any] = dict(settings)
        generate = replace(self.config.generate, **changed)
        parts = torch.arange(self.samples).split(self.config.launcher.batch_size)
        images = [draw_samples(self.pipeline, part.tolist(), self.config.seed, generate) for part in parts]
        return distance(self._statistics(ImageTensorDataset(np.concatenate(images))), self.reference)

    def _statistics(self, images: Dataset[Tensor]) -> Statistics:
        return statistics(self.network.extract(images), self.network.layer)
