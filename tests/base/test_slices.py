"""How many images are computed at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenbridge.base import slices as module
from tokenbridge.base.slices import slices


@settings(max_examples=100, derandomize=True)
@given(count=st.integers(0, 3000), values=st.integers(1, 2**33), most=st.none() | st.integers(1, 500))
def test_every_image_is_computed_once_in_order_and_within_the_memory(count: int, values: int, most: int | None) -> None:
    parts = [range(count)[part] for part in slices(count, values, most)]
    assert [index for part in parts for index in part] == list(range(count))
    largest = max(map(len, parts))
    assert largest <= 1 or (largest * values <= module.VALUES and largest <= (most or count))
    assert len({len(part) for part in parts[:-1]}) <= 1


@pytest.mark.parametrize(("values", "expected"), [(2**30, 1), (2**29, 2), (1, 7), (2**40, 1)])
def test_as_many_as_fit(values: int, expected: int) -> None:
    assert len(range(7)[slices(7, values)[0]]) == expected
