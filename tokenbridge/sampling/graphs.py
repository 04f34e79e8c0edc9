"""CUDA graphs of a function of tensors, for the head's loop: hundreds of small kernels for each step of sampling.

A graph launches all its kernels at once, with the shapes and addresses that it was captured with. So a shape is
captured only when it comes again, and results are copied out of the graph's memory.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]
Replay = Callable[[], object]

PLAIN_CALLS = 2  # of each shape: a capture takes about as long as two calls


class Graphs:
    """A function that is called as it is at first, and replayed as a graph for each shape that comes again.

    The function may only compute on its device: no random numbers, and nothing read back. Its weights must not move.

    Args:
        capture: called with the function and its static inputs; returns how to run it again, and its static outputs.
    """

    def __init__(self, function: Function, capture: Callable[[Function, Tensors], tuple[Replay, Tensors]]) -> None:
        self.function, self.capture = function, capture
        self.calls: Counter[object] = Counter()
        self.graphs: dict[object, tuple[Tensors, Replay, Tensors]] = {}

    def __call__(self, *inputs: Tensor) -> Tensors:
        key = tuple((each.shape, each.dtype) for each in inputs)
        self.calls[key] += 1
        if self.calls[key] <= PLAIN_CALLS:
            return self.function(*inputs)
        if key not in self.graphs:
            static = tuple(each.clone() for each in inputs)
            self.graphs[key] = (static, *self.capture(self.function, static))
        static, replay, outputs = self.graphs[key]
        for place, value in zip(static, inputs, strict=True):
            place.copy_(value)
        replay()
        return tuple(each.clone() for each in outputs)


class Capture:
    """Capture a function as a CUDA graph. Graphs of one ``Capture`` share memory, so none may run beside another."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, inputs: Tensors) -> tuple[Replay, Tensors]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        # autocast's copies of weights must belong to the graph alone: others are freed when autocast ends
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=stream):
            outputs = function(*inputs)
        torch.clear_autocast_cache()
        return graph.replay, outputs


def graphed(function: Function, device: torch.device) -> Function:
    """Return ``function`` with graphs on a CUDA device, and as it is on any other."""
    return Graphs(function, Capture()) if device.type == "cuda" else function
