"""Graphs of repeated shapes. CPUs have none: a stand-in computes into the same memory each time, as a graph does."""

import torch
from torch import Tensor

from tokenbridge.sampling.graphs import PLAIN_CALLS, Function, Graphs, Replay, Tensors, graphed


def doubled(x: Tensor, y: Tensor) -> Tensors:
    return 2 * x, x + y


class StandIn:
    """What a capture gives: the function computes from fixed inputs into fixed outputs."""

    def __init__(self) -> None:
        self.captured: list[torch.Size] = []

    def __call__(self, function: Function, inputs: Tensors) -> tuple[Replay, Tensors]:
        self.captured.append(inputs[0].shape)
        outputs = function(*inputs)

        def replay() -> None:
            for place, value in zip(outputs, function(*inputs), strict=True):
                place.copy_(value)

        return replay, outputs


def test_every_call_gives_the_functions_own_results_and_keeps_them() -> None:
    graphs = Graphs(doubled, StandIn())
    inputs = [(torch.full((2,), float(i)), torch.full((2,), 10.0)) for i in range(6)]
    found = [graphs(*each) for each in inputs]
    for results, each in zip(found, inputs, strict=True):
        assert all(torch.equal(*pair) for pair in zip(results, doubled(*each), strict=True))


def test_a_shape_is_captured_once_and_only_if_it_comes_again() -> None:
    capture = StandIn()
    graphs = Graphs(doubled, capture)
    for size, times in ((2, PLAIN_CALLS), (3, PLAIN_CALLS + 1), (4, PLAIN_CALLS + 9), (3, 2)):
        for _ in range(times):
            graphs(torch.zeros(size), torch.zeros(size))
    assert capture.captured == [torch.Size([3]), torch.Size([4])]


def test_only_cuda_has_graphs() -> None:
    assert graphed(doubled, torch.device("cpu")) is doubled
