"""The conditions that a candidate must pass; each gate gives its value, its limit and the reason in words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tokenbridge.config import PromotionConfig
from tokenbridge.ops.promotion.comparison import Difference


@dataclass(frozen=True)
class Gate:
    """One condition."""

    name: str
    value: float
    limit: float
    passed: bool
    reason: str


def at_most(name: str, value: float, limit: float, what: str) -> Gate:
    return Gate(name, value, limit, value <= limit, f"{what} {value:.4g}: at most {limit:g} is asked for")


def at_least(name: str, value: float, limit: float, what: str) -> Gate:
    return Gate(name, value, limit, value >= limit, f"{what} {value:.4g}: at least {limit:g} is asked for")


def veto_gate(reason: str | None) -> Gate:
    return Gate("veto", float(reason is not None), 0.0, reason is None, f"vetoed: {reason}" if reason else "no veto")


def weights_gate(fault: str = "") -> Gate:
    """Require that every weight is finite; ``fault`` says which is not."""
    return Gate("weights", float(bool(fault)), 0.0, not fault, fault or "every weight is finite")


def finite_gate(figures: Mapping[str, float]) -> Gate:
    """Require that no figure is NaN or infinite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    return Gate("finite", float(len(bad)), 0.0, not bad, f"not finite: {', '.join(bad) or 'none'}")


def absolute_gates(
    config: PromotionConfig, accuracy: float, real_accuracy: float, precision: float, recall: float
) -> list[Gate]:
    """Return the gates for the floors that every champion must reach, including the first one.

    Args:
        accuracy, real_accuracy: the class accuracy of samples, and that of real images. Its floor is a share of what
            the classifier reaches on real images: with 1,000 classes it sees few of them right.
    """
    floor = config.min_class_accuracy * real_accuracy
    what = f"class accuracy on real images is {real_accuracy:.4g}, and on samples"
    return [
        at_least("class_accuracy", accuracy, floor, what),
        at_least("precision", precision, config.min_precision, "precision is"),
        at_least("recall", recall, config.min_recall, "recall is"),
    ]


def relative_gates(config: PromotionConfig, found: Mapping[str, Difference], slowdown: float) -> list[Gate]:
    """Return the gates against the champion; the worse end of each interval counts."""
    frechet, accuracy = found["fd"], found["class_accuracy"]
    grown = f"Fréchet distance minus the champion's is {_interval(frechet, config)}, so it may have grown by"
    fallen = f"class accuracy minus the champion's is {_interval(accuracy, config)}, so it may have fallen by"
    return [
        at_most("fd_increase", frechet.high, config.max_fd_increase, grown),
        at_most("class_accuracy_decrease", -accuracy.low, config.max_class_accuracy_decrease, fallen),
        at_most("slowdown", slowdown, config.max_slowdown, "time per image over the champion's is"),
    ]


def _interval(difference: Difference, config: PromotionConfig) -> str:
    return (
        f"{difference.observed:+.4g} ({100 * config.confidence:g}% interval {difference.low:+.4g} "
        f"to {difference.high:+.4g})"
    )
