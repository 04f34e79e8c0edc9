"""Stage ``tokenize``, and training on what it writes."""

from pathlib import Path

import pytest
import torch

from tests.stages.conftest import configure
from tests.support.small_data import write_moments
from tokenbridge.base.files import read_json
from tokenbridge.base.seeding import generator
from tokenbridge.infra.dvc import read_stages
from tokenbridge.stages import tokenize
from tokenbridge.stages.tokenize import npz_bytes, size_report
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.tokenizer.tokens import StoredTokens, bits_per_index, packed_bytes

KL16 = (32, 16, 16)  # moments of 256 px


@pytest.fixture
def packed(repository: Path) -> Path:
    """The repository, with settings that store tokens."""
    configure(repository, "tokens=packed", "tokenize.samples=2")
    return repository


def test_moments_and_quantizer_become_tokens_and_a_report(
    packed: Path, vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_moments(packed / "data/moments", vae_latents)
    quantizer.save_pretrained(packed / "models/quantizer")
    tokenize.main("tokens")
    tokens = StoredTokens(packed / "data/tokens", packed / "models/quantizer")
    assert tokens.draw(torch.arange(5), generator(0)).shape == (5, 16, 4)
    report = read_json(packed / "reports/tokenize.json")
    assert report["sample_bytes"] == 16 * 4 * 3 / 8
    assert report["moments_bytes"] == 16 * 8 * 2
    assert (report["samples"], report["flips"]) == (2, 2)


def test_there_is_a_stage_only_where_tokens_are_asked_for(packed: Path) -> None:
    stages = read_stages(packed)
    assert stages["tokenize@tokens"].needed == ["encode", "fit_quantizer"]
    assert "tokenize@tokens" in stages["train@tiny"].needed
    configure(packed)
    others = read_stages(packed)
    assert not [stage for stage in others if stage.startswith("tokenize")]
    assert "encode" in others["train@tiny"].needed
    assert all(stages[name] == others[name] for name in ("encode", "fit_quantizer"))  # they need not run again


@pytest.mark.parametrize(("packing", "at_least"), [("bits", 10), ("uint8", 8)])
def test_a_sample_is_much_smaller_than_the_released_codes_file(packing: str, at_least: int) -> None:
    stored = packed_bytes(16 * 16 * 16, bits_per_index(64, packing))
    report = size_report(KL16, stored)
    assert report["npz_ratio"] >= at_least
    assert report["moments_ratio"] == 32 * 16 * 16 * 2 / stored


def test_the_released_codes_file_is_its_array_and_some_headers() -> None:
    assert 0 < npz_bytes(KL16) - 32 * 16 * 16 * 4 < 1000
