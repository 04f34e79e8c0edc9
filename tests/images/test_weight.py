"""Groups of items by number and weight."""

import pytest

from tokenbridge.images.weight import groups


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([], []),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
        ([6, 4, 1], [[6, 4], [1]]),
        ([4, 40, 4, 4], [[4], [40], [4, 4]]),
    ],
    ids=["none", "by number", "by weight", "a heavy one is alone"],
)
def test_groups_are_bounded_by_number_and_weight(weights: list[int], expected: list[list[int]]) -> None:
    assert list(groups(iter(weights), 3, int, 10)) == expected
