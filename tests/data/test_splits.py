"""max_train and max_test keep a balanced subset, the same each time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenbridge.data.splits import balanced_subset


def test_no_limit_keeps_everything_in_order() -> None:
    labels = np.array([2, 0, 1, 1, 0, 2])
    assert balanced_subset(labels, None).tolist() == balanced_subset(labels, 9).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("limit", "kept"), [(3, [0, 2, 3]), (4, [0, 2, 3, 6]), (6, [0, 1, 2, 3, 4, 6])])
def test_the_first_of_each_class_are_kept(limit: int, kept: list[int]) -> None:
    assert balanced_subset(np.array([2, 2, 0, 1, 1, 1, 0, 2]), limit).tolist() == kept


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60))
def test_classes_differ_by_one_unless_one_runs_out(labels: list[int], limit: int) -> None:
    array = np.array(labels)
    kept = balanced_subset(array, limit)
    assert len(kept) == min(limit, len(array)) == len(set(kept.tolist()))
    counts = [(array[kept] == label).sum() for label in set(labels)]
    exhausted = [(array == label).sum() for label in set(labels)]
    largest = max(counts)
    assert all(count >= largest - 1 or count == total for count, total in zip(counts, exhausted, strict=True))
