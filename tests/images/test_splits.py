"""Subsets of a split: max_train and max_test keep balanced classes, and some training images are for validation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenbridge.images import DataError
from tokenbridge.images.splits import balanced_subset, cut_validation


def test_no_limit_keeps_everything_in_order() -> None:
    labels = np.array([2, 0, 1, 1, 0, 2])
    assert balanced_subset(labels, None).tolist() == balanced_subset(labels, 9).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("limit", "kept"), [(3, [0, 2, 3]), (4, [0, 2, 3, 6]), (6, [0, 1, 2, 3, 4, 6])])
def test_the_first_of_each_class_are_kept(limit: int, kept: list[int]) -> None:
    assert balanced_subset(np.array([2, 2, 0, 1, 1, 1, 0, 2]), limit).tolist() == kept


def test_fewer_examples_than_classes_are_spread_over_the_classes() -> None:
    """The first classes of a data set may be alike, so a few images must not all come from them."""
    labels = np.repeat(np.arange(10), 3)
    assert labels[balanced_subset(labels, 5)].tolist() == [0, 2, 4, 6, 8]
    assert np.bincount(labels[balanced_subset(labels, 12)]).tolist() == [2, 1, 1, 1, 1, 2, 1, 1, 1, 1]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60))
def test_classes_differ_by_one_unless_one_runs_out(labels: list[int], limit: int) -> None:
    array = np.array(labels)
    kept = balanced_subset(array, limit)
    assert len(kept) == min(limit, len(array)) == len(set(kept.tolist()))
    counts = [(array[kept] == label).sum() for label in set(labels)]
    exhausted = [(array == label).sum() for label in set(labels)]
    largest = max(counts)
    assert all(count >= largest - 1 or count == total for count, total in zip(counts, exhausted, strict=True))


LABELS = np.repeat([0, 1, 2], [300, 100, 20])


@pytest.mark.parametrize("count", [42, 2000])
def test_validation_is_cut_from_each_class_by_its_share_up_to_a_tenth(count: int) -> None:
    assert np.bincount(LABELS[cut_validation(LABELS, count, seed=0)]).tolist() == [30, 10, 2]


def test_the_seed_decides_which_images_are_cut() -> None:
    first, again, other = (cut_validation(LABELS, 42, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_and_validation_need_an_image_of_each_class() -> None:
    assert cut_validation(np.array([0, 0, 1, 1]), 1, seed=0).sum() == 2
    with pytest.raises(DataError, match="class 1 has one training image"):
        cut_validation(np.array([0, 0, 1]), 1, seed=0)
