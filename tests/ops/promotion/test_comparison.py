"""The paired bootstrap: the distances it compares, and how often its interval holds the truth."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_featuresdict_to_metric

from tokenbridge.evaluation.metrics import frechet_distance
from tokenbridge.ops.promotion.comparison import (
    Comparison,
    Difference,
    FrechetDistance,
    SampleSet,
    compare,
    compare_accuracy,
    compare_kid,
    kernel_distances,
    resample_counts,
)

SAMPLES, DIMENSIONS = 120, 6


def features(seed: int, count: int = SAMPLES, shift: float = 0.0) -> Tensor:
    noise = torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.5, 2, DIMENSIONS) + shift


def samples(seed: int, shift: float = 0.0) -> SampleSet:
    correct = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(seed)) < 0.8 - shift
    return SampleSet(features(seed, shift=shift), correct.numpy())


def run(candidate: SampleSet, champion: SampleSet, **changes: float) -> Comparison:
    settings = {"confidence": 0.95, "resamples": 100, "min_resamples": 100, "seconds": 1e9} | changes
    return compare(candidate, champion, features(99, 1000), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "of_reference"), [(SAMPLES, 500), (DIMENSIONS - 2, 500), (SAMPLES, DIMENSIONS - 2)])
def test_the_fast_frechet_distance_is_torch_fidelitys(count: int, of_reference: int) -> None:
    """Also where there are fewer images than features."""
    reference, seen = features(0, of_reference), features(1, count, shift=0.3)
    expected = frechet_distance({"pooled": seen}, {"pooled": reference})
    assert FrechetDistance(reference).of(seen)(torch.ones(count)) == pytest.approx(expected, abs=1e-4)


def test_counts_weigh_as_repeated_images_do() -> None:
    distance, seen = FrechetDistance(features(0, 500)), features(1)
    counts = resample_counts(SAMPLES, 0)
    repeated = seen.repeat_interleave(counts, dim=0)
    assert counts.sum() == SAMPLES
    assert distance.of(seen)(counts) == pytest.approx(distance.of(repeated)(torch.ones(SAMPLES)))


def test_the_kid_difference_is_torch_fidelitys() -> None:
    candidate, champion, reference = features(1, shift=0.3), features(2), features(0)
    settings = {"kid_subsets": 1, "kid_subset_size": SAMPLES, "verbose": False}  # one subset that is the whole

    def kid(seen: Tensor) -> float:
        metric = kid_featuresdict_to_metric({"x": seen}, {"x": reference}, "x", **settings)
        return float(metric["kernel_inception_distance_mean"])

    found = compare_kid(candidate, champion, reference, torch.ones(3, SAMPLES, dtype=torch.long), 0.95)
    assert found.observed == pytest.approx(kid(candidate) - kid(champion), rel=1e-5)


def test_kid_is_unbiased_under_resampling() -> None:
    """Pairs of an image with itself, of which a resample has more, would raise every distance."""
    once = torch.ones(1, SAMPLES, dtype=torch.double)
    counts = torch.stack([resample_counts(SAMPLES, number) for number in range(400)]).double()
    distances = kernel_distances(features(1), features(0, 500), torch.cat([once, counts]))
    standard_error = distances[1:].std() / len(counts) ** 0.5
    assert abs(distances[1:].mean() - distances[0]) < 3 * standard_error


def test_accuracy_is_compared_image_by_image() -> None:
    champion = np.arange(SAMPLES) % 4 > 0
    counts = torch.stack([resample_counts(SAMPLES, number) for number in range(50)])
    same = compare_accuracy(champion, champion, counts, 0.95)
    assert (same.observed, same.low, same.high) == (0, 0, 0)  # two independent resamples would differ
    assert compare_accuracy(np.ones(SAMPLES, bool), champion, counts, 0.95).observed == pytest.approx(0.25)


def test_the_interval_is_centred_on_what_was_observed() -> None:
    found = Difference.of(1.0, np.linspace(4, 6, 101), confidence=0.8)
    assert (found.low, found.high) == pytest.approx((0.2, 1.8))
    assert found.resampled.mean() == pytest.approx(1.0)


def test_a_model_does_not_differ_from_itself() -> None:
    """Both sets are resampled with the same indices, or chance would tell them apart."""
    same = samples(1)
    for difference in run(same, same).intervals().values():
        assert difference == {"observed": 0, "low": 0, "high": 0}


def test_equal_models_are_told_apart_in_few_trials_only() -> None:
    """Of 60 pairs of equal models a 90% interval may miss 0 in 6 or so; 15 would be a wrong interval."""
    found = [run(samples(2 * n), samples(2 * n + 1), confidence=0.9) for n in range(60)]
    for kind in ("frechet", "kid", "accuracy"):
        intervals = [getattr(comparison, kind) for comparison in found]
        assert sum(not i.low <= 0 <= i.high for i in intervals) <= 14, kind


def test_a_worse_model_is_found_out() -> None:
    for seed in range(5):
        found = run(samples(2 * seed, shift=0.6), samples(2 * seed + 1))
        assert found.frechet.low > 0
        assert found.kid.low > 0
        assert found.accuracy.high < 0


def test_a_number_of_resamples_gives_the_same_interval_every_time() -> None:
    first, second = (run(samples(0, shift=0.2), samples(1)) for _ in range(2))
    assert first.intervals() == second.intervals()
    shorter = run(samples(0, shift=0.2), samples(1), resamples=30, min_resamples=30)
    moved = first.frechet.resampled[:30] - first.frechet.resampled[:30].mean()
    np.testing.assert_allclose(shorter.frechet.resampled - shorter.frechet.observed, moved)


def test_the_time_budget_ends_it_but_not_before_the_least_number() -> None:
    found = run(samples(0), samples(1), resamples=1000, min_resamples=7, seconds=0)
    assert found.resamples == len(found.frechet.resampled) == len(found.kid.resampled) == 7
