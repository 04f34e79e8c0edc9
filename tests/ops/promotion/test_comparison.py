"""The paired bootstrap: the distances it compares, and how often its interval holds the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_featuresdict_to_metric

from tests.ops.promotion.test_gates import CONFIG
from tokenbridge.evaluation.metrics import frechet_distance
from tokenbridge.ops.promotion.comparison import (
    Difference,
    FrechetDistance,
    SampleSet,
    compare,
    kernel_distances,
    resample_counts,
)

SAMPLES, DIMENSIONS = 120, 6
LIMITS = replace(CONFIG, min_resamples=100, seconds=1e9)


def features(seed: int, count: int = SAMPLES, shift: float = 0.0) -> Tensor:
    noise = torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.5, 2, DIMENSIONS) + shift


def samples(seed: int, shift: float = 0.0) -> SampleSet:
    correct = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(seed)) < 0.8 - shift
    return SampleSet(features(seed, shift=shift), correct.numpy())


def run(candidate: SampleSet, champion: SampleSet, **changes: float) -> dict[str, Difference]:
    return compare(candidate, champion, features(99, 1000), replace(LIMITS, **changes))  # type: ignore[arg-type]


def intervals(found: dict[str, Difference]) -> dict[str, dict[str, float]]:
    return {kind: difference.interval() for kind, difference in found.items()}


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
    candidate, champion, reference = samples(1, shift=0.3), samples(2), features(0)
    settings = {"kid_subsets": 1, "kid_subset_size": SAMPLES, "verbose": False}  # one subset that is the whole

    def kid(seen: Tensor) -> float:
        metric = kid_featuresdict_to_metric({"x": seen}, {"x": reference}, "x", **settings)
        return float(metric["kernel_inception_distance_mean"])

    found = compare(candidate, champion, reference, LIMITS)["kid"]
    assert found.observed == pytest.approx(kid(candidate.features) - kid(champion.features), rel=1e-5)


def test_kid_is_unbiased_under_resampling() -> None:
    """Pairs of an image with itself, of which a resample has more, would raise every distance."""
    once = torch.ones(1, SAMPLES, dtype=torch.double)
    counts = torch.stack([resample_counts(SAMPLES, number) for number in range(400)]).double()
    distances = kernel_distances(features(1), features(0, 500), torch.cat([once, counts]))
    standard_error = distances[1:].std() / len(counts) ** 0.5
    assert abs(distances[1:].mean() - distances[0]) < 3 * standard_error


def test_accuracy_is_compared_image_by_image() -> None:
    champion = SampleSet(features(1), np.arange(SAMPLES) % 4 > 0)
    same = run(SampleSet(features(2), champion.correct), champion)["class_accuracy"]
    assert (same.observed, same.low, same.high) == (0, 0, 0)  # two independent resamples would differ
    right = SampleSet(features(2), np.ones(SAMPLES, bool))
    assert run(right, champion)["class_accuracy"].observed == pytest.approx(0.25)


def test_the_interval_is_centred_on_what_was_observed() -> None:
    found = Difference.of(np.array([1.0, *np.linspace(4, 6, 101)]), confidence=0.8)
    assert (found.low, found.high) == pytest.approx((0.2, 1.8))
    assert found.resampled.mean() == pytest.approx(1.0)


def test_a_model_does_not_differ_from_itself() -> None:
    """Both sets are resampled with the same indices, or chance would tell them apart."""
    same = samples(1)
    for difference in intervals(run(same, same)).values():
        assert difference == {"observed": 0, "low": 0, "high": 0}


def test_equal_models_are_told_apart_in_few_trials_only() -> None:
    """Of 60 pairs of equal models a 90% interval may miss 0 in 6 or so; 15 would be a wrong interval."""
    found = [run(samples(2 * n), samples(2 * n + 1), confidence=0.9) for n in range(60)]
    for kind in ("fd", "kid", "class_accuracy"):
        assert sum(not each[kind].low <= 0 <= each[kind].high for each in found) <= 14, kind


def test_a_worse_model_is_found_out() -> None:
    for seed in range(5):
        found = run(samples(2 * seed, shift=0.6), samples(2 * seed + 1))
        assert found["fd"].low > 0
        assert found["kid"].low > 0
        assert found["class_accuracy"].high < 0


def test_a_number_of_resamples_gives_the_same_interval_every_time() -> None:
    first, second = (run(samples(0, shift=0.2), samples(1)) for _ in range(2))
    assert intervals(first) == intervals(second)
    shorter = run(samples(0, shift=0.2), samples(1), resamples=30, min_resamples=30)["fd"]
    moved = first["fd"].resampled[:30] - first["fd"].resampled[:30].mean()
    np.testing.assert_allclose(shorter.resampled - shorter.observed, moved)


def test_the_time_budget_ends_it_but_not_before_the_least_number() -> None:
    found = run(samples(0), samples(1), resamples=1000, min_resamples=7, seconds=1e-9)
    assert {len(difference.resampled) for difference in found.values()} == {7}
