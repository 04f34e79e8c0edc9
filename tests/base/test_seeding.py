"""Randomness as a function of names and numbers."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenbridge.base.seeding import EpochOrder, _order, derive_seed, generator


def test_streams_are_reproducible_and_apart() -> None:
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert len({derive_seed(seed, name, i) for seed in range(3) for name in "ab" for i in range(50)}) == 300
    assert torch.equal(torch.rand(3, generator=generator(1)), torch.rand(3, generator=generator(1)))


@given(examples=st.integers(1, 40), batch=st.integers(1, 50))
def test_every_example_once_per_epoch_whatever_the_batch(examples: int, batch: int) -> None:
    order = EpochOrder(examples, batch, seed=0)
    steps = -(-2 * examples // batch)
    seen = torch.cat([order.indices(step) for step in range(steps)])
    for epoch in range(2):
        assert seen[epoch * examples : (epoch + 1) * examples].sort().values.tolist() == list(range(examples))


def test_batch_size_does_not_change_the_order() -> None:
    small, large = EpochOrder(30, 5, seed=1), EpochOrder(30, 10, seed=1)
    assert torch.equal(torch.cat([small.indices(0), small.indices(1)]), large.indices(0))


def test_a_thread_never_meets_an_epoch_without_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, shared = EpochOrder(64, 64, seed=0).indices(1), EpochOrder(64, 64, seed=0)
    _order.cache_clear()
    shared.indices(0)
    drawing, randperm = Event(), torch.randperm

    def slow(*arguments: int, **options: torch.Generator) -> torch.Tensor:
        drawing.set()
        time.sleep(0.1)
        return randperm(*arguments, **options)

    monkeypatch.setattr(torch, "randperm", slow)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(shared.indices, 1)
        drawing.wait()
        assert torch.equal(shared.indices(1), expected)
        assert torch.equal(ahead.result(), expected)


def test_epochs_become_steps() -> None:
    assert EpochOrder(100, 10, 0).steps(2.5) == 25
    assert EpochOrder(100, 1000, 0).steps(0.1) == 1
