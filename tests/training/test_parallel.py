"""Models that processes share. What many processes compute is in tests/test_distributed.py."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.support.small_model import small_model
from tokenbridge.base.checks import FP32
from tokenbridge.base.distributed import Processes
from tokenbridge.training.parallel import gather_full, shard


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_only_the_first_process_keeps_the_whole_model() -> None:
    model = small_model()
    whole = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    shard(model, FP32, init_device_mesh("cpu", (1,)))
    shards = dict(model.named_parameters())
    assert gather_full(shards, Processes(rank=1, world=2)) == {}
    gathered = gather_full(shards, Processes(rank=0, world=2))
    assert gathered.keys() == whole.keys()
    assert all(torch.equal(gathered[name], whole[name]) for name in whole)
