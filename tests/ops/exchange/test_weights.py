"""Released weight files are read without running what they hold, and matched name by name."""

import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tokenbridge.ops.exchange.weights import ImportFailedError, fill, read_weights


class Malicious:
    """Unpickled, it would run a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("zipped", [True, False])  # False: as an old torch wrote files
def test_weights_and_settings_beside_them_are_read(tmp_path: Path, zipped: bool) -> None:
    content = {"model": {"a": torch.ones(2)}, "args": Namespace(lr=4e-4, out="runs")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = read_weights(tmp_path / "a.pth")
    assert torch.equal(content["model"]["a"], torch.ones(2))
    assert content["args"] == Namespace(lr=4e-4, out="runs")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    content = {"model": {"a": torch.ones(2)}, "extra": Malicious(tmp_path / "proof")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ImportFailedError, match=r"a\.pth holds more than tensors"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_cut_off_is_named(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
    with pytest.raises(ImportFailedError, match=name):
        read_weights(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportFailedError, match="is missing"):
        read_weights(tmp_path / "a.pth")


def test_a_file_without_names_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "a.pth")
    with pytest.raises(ImportFailedError, match="holds a Tensor"):
        read_weights(tmp_path / "a.pth")


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
