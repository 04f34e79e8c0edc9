"""Compiled blocks: where they are the default, and how few graphs serve all numbers of masked positions."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.support.small_model import LAUNCHER, random_model
from tokenbridge.model import head_loss, layers
from tokenbridge.training import parallel
from tokenbridge.training.parallel import compiles

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("triton", "compiler", "expected"), [(True, "gcc", True), (False, "gcc", False), (True, None, False)]
)
def test_gpus_compile_by_default_where_they_can(
    monkeypatch: pytest.MonkeyPatch, triton: bool, compiler: str | None, expected: bool
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(parallel, "has_triton", lambda: triton)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == compiler else None)
    default = replace(LAUNCHER, compile=None)
    assert compiles(default, GPU) is expected
    assert not compiles(default, CPU)
    assert compiles(replace(LAUNCHER, compile=True), CPU)
    assert not compiles(replace(LAUNCHER, compile=False), GPU)


def test_few_graphs_serve_every_number_of_masked_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of all positions, one of the masked ones in the last block, one of the head; one more for a single one."""
    torch.compiler.reset()
    monkeypatch.setattr(layers, "UNFUSED", "")  # the branch of GPUs
    monkeypatch.setattr(head_loss, "NUMBERS_ON_CPU", 2**11)  # the head's last part has another size each time
    counter = CompileCounter()
    model = random_model().train()
    plain = random_model().train()
    model.compile_repeated_blocks(dynamic=True, backend=counter)
    random = torch.Generator().manual_seed(0)
    values, tokens = torch.randn(4, 16, 4, generator=random), torch.randint(8, (4, 16, 4), generator=random)
    labels, order = torch.zeros(4, dtype=torch.long), torch.rand(4, 16, generator=random).argsort(dim=1)
    graphs = {}
    for masked in (5, 16, 1, *range(2, model.positions)):
        loss = model(values, tokens, labels, order, masked)
        loss.backward()
        torch.testing.assert_close(loss, plain(values, tokens, labels, order, masked))
        graphs[masked] = counter.frame_count
    assert graphs[16] == 3
    assert set(list(graphs.values())[2:]) == {4}
