"""The schedule of masked numbers: every step reveals, few at first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenbridge.model.schedule import masked_counts


@given(positions=st.integers(1, 300), data=st.data())
def test_every_step_reveals_and_the_last_reveals_all(positions: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, positions))
    counts = masked_counts(positions, steps)
    assert len(counts) == steps
    assert counts[-1] == 0
    assert all(after < before for before, after in zip([positions, *counts], counts, strict=False))


def test_the_cosine_reveals_few_at_first() -> None:
    assert masked_counts(256, 4) == [236, 181, 97, 0]


def test_more_steps_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 16 steps"):
        masked_counts(16, 17)
