"""Tokens on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.support.small_data import SAMPLES, store_tokens, write_moments
from tests.support.small_model import QUANTIZER
from tokenbridge.base.arrays import ArraysError, shard_name
from tokenbridge.base.seeding import generator
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.tokenizer.tokens import (
    StoredTokens,
    bits_per_index,
    pack,
    packed_bytes,
    sampled_tokens,
    unpack,
)

BITS = range(1, 9)


@pytest.fixture
def moments(tmp_path: Path, vae_latents: torch.Tensor) -> Moments:
    return write_moments(tmp_path / "moments", vae_latents)


# ---- packing


@pytest.mark.parametrize("bits", BITS)
@given(data=st.data())
def test_what_is_packed_comes_back(bits: int, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 40)))
    indices = data.draw(arrays(np.int64, shape, elements=st.integers(0, 2**bits - 1)))
    packed = pack(indices, bits)
    assert packed.shape == (shape[0], packed_bytes(shape[1], bits))
    assert packed.dtype == np.uint8
    assert np.array_equal(unpack(packed, bits, shape[1]), indices)


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 2), (8, 3), (33, 6), (64, 6), (65, 7), (256, 8)])
def test_bits_are_as_many_as_the_levels_need(levels: int, bits: int) -> None:
    assert bits_per_index(levels, "bits") == bits
    assert bits_per_index(levels, "uint8") == 8


def test_bits_lie_side_by_side() -> None:
    assert pack(np.array([[0b000001, 0b000010, 0b000011, 0b111111]]), 6).tolist() == [
        [0b00000100, 0b00100000, 0b11111111]
    ]


# ---- samples


def test_samples_flips_images_and_seeds_have_noise_of_their_own(
    vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer, tmp_path: Path
) -> None:
    same = write_moments(tmp_path / "same", torch.zeros_like(vae_latents[:4]) + quantizer.loc[:, None, None])
    images = torch.arange(2)
    fine = fit_quantizer(vae_latents / 50 + quantizer.loc[:, None, None], replace(QUANTIZER, levels=256))
    drawn = [sampled_tokens(same, fine, images, samples=2, seed=seed).flatten(0, 2) for seed in (0, 1)]
    assert len(torch.cat(drawn).flatten(1).unique(dim=0)) == 2 * 2 * 2 * 2


# ---- stored


@pytest.mark.parametrize("packing", ["bits", "uint8"])
def test_the_stored_sample_and_flip_asked_for_is_read(
    moments: Moments, quantizer: DimensionwiseQuantizer, tmp_path: Path, packing: str
) -> None:
    tokens = store_tokens(tmp_path, moments, quantizer, packing)
    images, samples, flips = torch.tensor([63, 0, 31, 32]), torch.tensor([0, 2, 1, 1]), torch.tensor([1, 0, 1, 0])
    expected = sampled_tokens(moments, quantizer, images, SAMPLES, seed=0)
    assert torch.equal(tokens.read(images, samples, flips), expected[torch.arange(4), samples, flips])
    assert (tokens.height, tokens.width, tokens.num_classes) == (4, 4, 3)
    assert torch.equal(tokens.labels, moments.labels)


def test_every_sample_and_flip_is_drawn(moments: Moments, quantizer: DimensionwiseQuantizer, tmp_path: Path) -> None:
    tokens = store_tokens(tmp_path, moments, quantizer)
    drawn = tokens.draw(torch.full((200,), 5), generator(0))
    kept = sampled_tokens(moments, quantizer, torch.tensor([5]), SAMPLES, seed=0)
    assert torch.equal(drawn.unique(dim=0), kept.flatten(0, 2).unique(dim=0))


def test_patches_are_positions(moments: Moments, vae_latents: torch.Tensor, tmp_path: Path) -> None:
    quantizer = fit_quantizer(vae_latents, replace(QUANTIZER, patch_size=2))
    tokens = store_tokens(tmp_path, moments, quantizer)
    assert (tokens.height, tokens.width) == (2, 2)
    drawn = tokens.draw(torch.arange(5), generator(0))
    assert drawn.shape == (5, 4, 16)


def test_a_rerun_makes_the_missing_shards_only(
    moments: Moments, quantizer: DimensionwiseQuantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenbridge.base.arrays.SHARD_ROWS", 24)
    store_tokens(tmp_path, moments, quantizer)
    first, second, _ = shards = [tmp_path / "tokens" / shard_name(index) for index in range(3)]
    contents = [shard.read_bytes() for shard in shards]
    first.write_bytes(contents[0][:-1] + b"!")  # to be seen again
    second.unlink()
    store_tokens(tmp_path, moments, quantizer, batch_size=5)
    assert [shard.read_bytes() for shard in shards] == [contents[0][:-1] + b"!", *contents[1:]]


def test_tokens_of_another_quantizer_are_refused(
    moments: Moments, vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer, tmp_path: Path
) -> None:
    store_tokens(tmp_path, moments, quantizer)
    fit_quantizer(vae_latents * 2, QUANTIZER).save_pretrained(tmp_path / "quantizer")
    with pytest.raises(ArraysError, match=r"another quantizer.*run `dvc repro tokenize`"):
        StoredTokens(tmp_path / "tokens", tmp_path / "quantizer")
    with pytest.raises(ArraysError, match="run `dvc repro tokenize`"):
        StoredTokens(tmp_path, tmp_path / "quantizer")
