"""The loop of sampling copies nothing from the device or to it, so that a GPU is never waited for."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.support.small_model import random_model
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import GUIDED, REVEAL_ORDERS, GuidanceOn, RevealOrder, SamplingSettings
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

READS = ("item", "cpu", "tolist", "numpy", "nonzero", "equal", "__bool__", "__int__", "__float__", "__index__")
COPIES = ("tensor", "as_tensor", "asarray", "new_tensor", "from_numpy")  # to the device


class HostReads(TorchFunctionMode):
    """Count the calls that need a tensor's values on the host, and those that make a tensor of the host's values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.copies = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in READS
        self.copies += getattr(func, "__name__", "") in COPIES
        return func(*args, **(kwargs or {}))


def test_a_read_is_counted() -> None:
    x = torch.ones(2)
    with HostReads() as reads:
        x.sum().item(), x.tolist(), x.cpu(), x.numpy(), bool(x.all()), int(x[0]), torch.tensor([1.0])
    assert (reads.count, reads.copies) == (6, 1)


@pytest.mark.parametrize("head", ["autoregressive", "parallel"])
@pytest.mark.parametrize("order", REVEAL_ORDERS)
@pytest.mark.parametrize("guidance_on", GUIDED)
def test_no_step_of_sampling_reads_a_value(
    quantizer: DimensionwiseQuantizer, order: RevealOrder, head: str, guidance_on: GuidanceOn
) -> None:
    model: TokenBridgeTransformer = random_model(head=head)
    draws = Draws.from_generators([generator(0, "sample", i) for i in range(2)], positions=16, numbers=4)
    settings = SamplingSettings(6, 2.0, temperature=0.9, top_p=0.95, order=order, guidance_on=guidance_on)
    labels: Tensor = torch.tensor([0, 1])
    seen: list[int] = []
    with HostReads() as reads:
        sample_tokens(model, quantizer, labels, draws, settings, lambda *_: seen.append(reads.count))
    assert seen == [0] * 6
    assert reads.count == 1  # whether the logits were finite
    assert reads.copies == (order == "halton")  # its list, before the first step
