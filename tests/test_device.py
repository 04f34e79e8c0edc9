"""Where and how tensors are computed."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import LAUNCHER, RECIPE
from tokenbridge.config import ConfigError
from tokenbridge.device import has_bf16, pick_device
from tokenbridge.training import check_processes

CUDA = torch.device("cuda")


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU before Ampere: torch says that it has bfloat16 if imitation counts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)


@pytest.mark.usefixtures("old_gpu")
def test_imitated_bfloat16_is_refused_for_training_and_told_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"say train\.precision=fp32"):
        check_processes(replace(RECIPE, precision="bf16"), LAUNCHER, 1, CUDA)
    check_processes(replace(RECIPE, precision="fp32"), LAUNCHER, 1, CUDA)
    assert pick_device(replace(LAUNCHER, threads=0)) == CUDA
    assert "this GPU has no bfloat16" in capsys.readouterr().out


def test_cpus_have_bfloat16() -> None:
    assert has_bf16(torch.device("cpu"))
