"""The averaged weights."""

import pytest
import torch
from torch import nn

from tokenbridge.engine.ema import Ema


def average_of_ones(updates: int, decay: float, *, warmup: bool) -> float:
    """The average of a weight that starts at zero and is one at each update."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, decay, warmup)
    nn.init.ones_(model.weight)
    for _ in range(updates):
        ema.update(model)
    return ema.averages["weight"].item()


def test_it_is_the_exponential_average() -> None:
    assert average_of_ones(3, 0.9, warmup=False) == pytest.approx(1 - 0.9**3)


def test_warm_up_forgets_the_start() -> None:
    assert average_of_ones(100, 0.9999, warmup=True) > 0.99


@pytest.mark.parametrize("warmup", [False, True])
def test_a_decay_of_zero_is_the_model_itself(warmup: bool) -> None:
    model = nn.Linear(8, 8)
    ema = Ema(model, decay=0.0, warmup=warmup)
    for std in (1e-3, 1.0, 1e3):
        nn.init.normal_(model.weight, std=std)
        ema.update(model)
        assert torch.equal(ema.averages["weight"], model.weight)


def test_its_state_is_all_that_it_knows() -> None:
    model = nn.Linear(2, 2)
    first, second = Ema(model, 0.5, warmup=True), Ema(nn.Linear(2, 2), 0.5, warmup=True)
    first.update(model)
    for mine, other in zip(second.state_dict().values(), first.state_dict().values(), strict=True):
        mine.copy_(other)
    nn.init.ones_(model.weight)
    first.update(model)
    second.update(model)
    assert torch.equal(first.averages["weight"], second.averages["weight"])


def test_it_is_swapped_into_the_model_and_back_bit_for_bit() -> None:
    model = nn.Linear(3, 3)
    ema = Ema(model, 0.7, warmup=False)
    nn.init.normal_(model.weight)
    ema.update(model)
    weight, average = model.weight.detach().clone(), ema.averages["weight"].clone()
    with pytest.raises(KeyboardInterrupt), ema.swapped_into(model):
        assert torch.equal(model.weight, average)
        raise KeyboardInterrupt
    assert torch.equal(model.weight, weight)
    assert torch.equal(ema.averages["weight"], average)


def test_it_becomes_the_model() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5, warmup=False)
    average = model.weight.detach().clone()
    nn.init.ones_(model.weight)
    ema.apply(model)
    assert torch.equal(model.weight, average)
