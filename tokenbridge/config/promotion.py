"""What a model must show before it becomes the champion."""

import math
from dataclasses import dataclass

from tokenbridge.base.checks import require, require_between, require_positive


@dataclass
class PromotionConfig:
    """The comparison with the champion, and the gates. Never a parameter of a stage."""

    confidence: float  # of the intervals, such as 0.95
    resamples: int  # at most
    min_resamples: int  # made even if that takes longer than `seconds`
    seconds: float  # after which resampling stops
    max_fd_increase: float  # candidate minus champion: the interval's upper end; 0: must be surely better
    max_class_accuracy_decrease: float  # champion minus candidate: the interval's upper end
    min_class_accuracy: float
    min_precision: float
    min_recall: float
    max_slowdown: float  # time per image, candidate / champion: the median of the rounds
    timing_images: int  # drawn by each model in a round; few, that both meet the same load
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
