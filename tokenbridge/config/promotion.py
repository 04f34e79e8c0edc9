"""The conditions that a model must meet before it becomes the champion."""

import math
from dataclasses import dataclass

from tokenbridge.base.checks import require, require_between, require_positive


@dataclass
class PromotionConfig:
    """Settings of the comparison with the champion, and of the gates. They are never stage parameters."""

    confidence: float  # of the intervals, such as 0.95
    resamples: int  # the largest number of resamples
    min_resamples: int  # made even if they take longer than `seconds`
    seconds: float  # resampling stops after this time
    max_fd_increase: float  # limit for the interval's upper end of candidate minus champion; 0: must be surely better
    max_class_accuracy_decrease: float  # limit for the interval's upper end of champion minus candidate
    min_class_accuracy: float
    min_precision: float
    min_recall: float
    max_slowdown: float  # limit for the rounds' median of candidate / champion time per image
    timing_images: int  # drawn by each model in a round; few, so that both models meet the same load
    timing_rounds: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(math.isfinite(value), f"promotion.{name} is {value}: give a number")
        require_between("promotion", 0.5, 0.9999, confidence=self.confidence)
        require_between("promotion", 2, self.resamples, min_resamples=self.min_resamples)
        names = ("seconds", "max_slowdown", "timing_images", "timing_rounds")
        require_positive("promotion", **{name: getattr(self, name) for name in names})
        for floor in ("min_class_accuracy", "min_precision", "min_recall"):
            require_between("promotion", 0.0, 1.0, **{floor: getattr(self, floor)})
