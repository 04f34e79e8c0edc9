"""Models of strangers: loading is strict, executes nothing, and says what a wrong file is."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.small_model import small_model
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json, sha256_tree, write_json
from tokenbridge.base.loading import LoadError, load_whole, read_object, read_weights
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_model_saves_as_it_was(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "first")
    load_whole(TokenBridgeTransformer, tmp_path / "first").save_pretrained(tmp_path / "second")
    assert sha256_tree(tmp_path / "first") == sha256_tree(tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second/config.json").read_text()


def loads(folder: Path, **options: Any) -> bool:
    """Whether the folder holds the small model."""
    loaded, model = load_whole(TokenBridgeTransformer, folder, **options), small_model()
    return all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("saved", "options"),
    [
        ({"safe_serialization": False}, {}),
        ({"safe_serialization": False}, {"use_safetensors": False}),
        ({"max_shard_size": "20KB"}, {}),
        ({"max_shard_size": "20KB", "safe_serialization": False}, {}),
        ({"variant": "fp16"}, {"variant": "fp16"}),
        ({"variant": "fp16"}, {}),  # they are the only weights
        ({"variant": "ema", "max_shard_size": "20KB"}, {"variant": "ema"}),
    ],
)
def test_every_way_to_save_can_be_loaded(tmp_path: Path, saved: dict[str, Any], options: dict[str, Any]) -> None:
    small_model().save_pretrained(tmp_path, **saved)
    assert loads(tmp_path, **options)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_trainers_put_around_the_tensors_is_taken_off(folder: Path, prefix: str, wrapped: bool) -> None:
    weights = {prefix + name: tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    torch.save({"state_dict": weights, "epoch": 3} if wrapped else weights, folder / "diffusion_pytorch_model.bin")
    assert loads(folder)


def test_a_dtype_is_given_by_itself_or_by_name_and_leaves_the_quantizer_alone(folder: Path, tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, "bfloat16"):
        assert load_whole(TokenBridgeTransformer, folder, torch_dtype=dtype).dtype == torch.bfloat16
    DimensionwiseQuantizer(4, 8).save_pretrained(tmp_path / "quantizer")
    loaded = load_whole(DimensionwiseQuantizer, tmp_path / "quantizer", torch_dtype=torch.bfloat16)
    assert loaded.levels.dtype == torch.float32


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 334643276\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "is a pointer of Git LFS.*git lfs pull"),
        (PAGE, "is a web page"),
        (b"", "is empty"),
        (b"{" * 100_000, "get it again"),
        (b"[1, 2, 3, 4, 5]", "get it again"),
        (b"\0" * 5000, "get it again"),
        (b"\xff\xfe" * 50, "get it again"),
    ],
)
def test_a_file_that_is_something_else_is_named_with_what_it_is(
    folder: Path, name: str, content: bytes, message: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(LoadError, match=f"{name} .*{message}"):
        loads(folder)


def test_what_is_no_file_is_not_opened(folder: Path) -> None:
    """A pipe would block for ever."""
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)
    with pytest.raises(LoadError, match="no regular file"):
        loads(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": -1}, "does not describe a TokenBridgeTransformer"),
        ({"width": "wide"}, "does not describe a TokenBridgeTransformer"),
        ({"levels": 16}, "size mismatch"),
        ({"encoder_depth": 2}, "Missing key"),
    ],
)
def test_a_config_that_does_not_fit_is_named(folder: Path, change: dict[str, Any], message: str) -> None:
    write_json(folder / CONFIG, read_json(folder / CONFIG) | change)
    with pytest.raises(LoadError, match=message):
        loads(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no index of shards"),
        ({"weight_map": {"a": "../../secret.bin"}}, "no index of shards"),
        ({"weight_map": {"a": "part-1.safetensors"}}, "part-1.safetensors is missing"),
    ],
)
def test_an_index_names_files_of_its_folder(folder: Path, index: dict[str, Any], message: str) -> None:
    write_json(folder / f"{WEIGHTS}.index.json", index)
    with pytest.raises(LoadError, match=message):
        loads(folder)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_refused(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = min(tmp_path.glob("*-of-*.safetensors"))
    name, *rest = (weights := load_file(shard))
    save_file({other: weights[other] for other in rest}, shard)
    with pytest.raises(LoadError, match=name):
        loads(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fp32"}, "no weights of the variant 'fp32'.*There: diffusion_pytorch_model.safetensors"),
        ({"use_safetensors": False}, "has no weights"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8'"),
        ({"torch_dtype": "quick"}, "torch_dtype is 'quick'"),
    ],
)
def test_an_option_that_the_folder_cannot_fulfil_is_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        loads(folder, **options)


def test_a_weight_that_is_not_finite_is_named(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["token_in.bias"][0] = float("inf")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"token_in\.bias contains NaN"):
        loads(folder)


def test_a_folder_of_another_kind_is_explained(folder: Path, tmp_path: Path) -> None:
    for place, message in {
        tmp_path: rf"config\.json is missing.*one of the folders in it: {folder}",
        folder / CONFIG: "is a file: name a folder",
        tmp_path / "nothing": "nothing is missing",
    }.items():
        with pytest.raises(LoadError, match=message):
            loads(place)


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_user_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes are changed, cut off or put in anywhere; what loads all the same is of no interest here."""
    suffix, save = data.draw(st.sampled_from([(".safetensors", save_file), (".pth", torch.save), (".json", None)]))
    file = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    content: dict[str, Any] = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    if save is None:
        file.write_text(json.dumps({"a": [1, {"b": None}], "c": "d"}))
    else:
        save(content, file)
    whole = bytearray(file.read_bytes())
    start = data.draw(st.integers(0, len(whole)))
    whole[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    file.write_bytes(whole[: data.draw(st.one_of(st.none(), st.integers(0, len(whole))))])
    try:
        (read_object if save is None else read_weights)(file)
    except LoadError as error:
        assert str(file) in str(error)


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
    with pytest.raises(LoadError, match=r"a\.pth holds more than tensors"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_cut_off_is_named(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
    with pytest.raises(LoadError, match=name):
        read_weights(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is missing"):
        read_weights(tmp_path / "a.pth")


def test_a_file_without_names_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "a.pth")
    with pytest.raises(LoadError, match="holds a Tensor"):
        read_weights(tmp_path / "a.pth")
