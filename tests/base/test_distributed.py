"""Processes that torchrun started. tests/test_distributed.py has trainings of several of them."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tokenbridge.base.distributed import MEETING_VARIABLE, joined


def test_a_hang_costs_the_cluster_half_an_hour_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes, NCCL's own limit, are too short for what rank 0 does alone; two hours were too long."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv(MEETING_VARIABLE, str(tmp_path / "meeting"))
    with joined() as processes:
        assert (processes.rank, processes.world) == (0, 1)
        assert dist.group.WORLD is not None
        limit = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
        assert timedelta(minutes=10) < limit <= timedelta(minutes=30)
