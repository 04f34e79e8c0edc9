"""Released tensors are matched with a model's by name, shape and kind."""

import pytest
import torch
from torch import Tensor, nn

from tokenbridge.base.errors import UserError
from tokenbridge.ops.exchange.weights import ImportFailedError, fill


def filled(**weights: Tensor) -> nn.Linear:
    layer = nn.Linear(2, 4)
    fill(layer, weights, lambda name: {"weight": ["w0", "w1"], "bias": ["b"]}[name])
    return layer


def test_several_tensors_become_the_rows_of_one() -> None:
    layer = filled(w0=torch.zeros(2, 2), w1=torch.ones(2, 2), b=torch.arange(4.0))
    assert layer.weight[:, 0].tolist() == [0, 0, 1, 1]
    assert layer.bias.tolist() == [0, 1, 2, 3]


def test_missing_and_left_over_tensors_are_named() -> None:
    with pytest.raises(ImportFailedError, match=r"Missing: w1, b\. Left over: c"):
        filled(w0=torch.zeros(2, 2), c=torch.zeros(1))


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4,), (2, 3)])
def test_a_tensor_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImportFailedError, match="w1 has shape"):
        filled(w0=torch.zeros(2, 2), w1=torch.zeros(shape), b=torch.zeros(4))


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.tensor([0.0, 1.0, float("nan"), 0.0]), "b contains NaN"),
        (torch.arange(4, dtype=torch.int8), "b is torch.int8"),
        (torch.zeros(4).to_sparse(), "torch.sparse_coo"),
    ],
)
def test_a_tensor_that_cannot_be_a_weight_is_named(bias: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        filled(w0=torch.zeros(2, 2), w1=torch.zeros(2, 2), b=bias)
