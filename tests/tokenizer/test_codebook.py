"""Codebooks of k-means, and what they share with the dimension-wise quantizer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.small_model import QUANTIZER
from tokenbridge.base.errors import UserError
from tokenbridge.config import QuantizerConfig
from tokenbridge.tokenizer.codebook import CodebookQuantizer, fit_codebooks, kmeans, nearest
from tokenbridge.tokenizer.fitting import fit_quantizer, load_quantizer, quantizer_report
from tokenbridge.tokenizer.latents import to_maps, to_sequence
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

CODEBOOK = replace(QUANTIZER, family="codebook")
VECTORS = 200_000
# distortion for each dimension of iid N(0, 1) vectors of 8 dimensions, of k-means fitted to so many (Lloyd's iteration)
DISTORTIONS = {
    (1, 256): 0.325,
    (1, 1024): 0.238,
    (1, 4096): 0.174,
    (2, 64): 0.187,
    (2, 256): 0.098,
    (4, 16): 0.111,
    (4, 64): 0.0309,
}


def gaussian(count: int, seed: int, dimensions: int = 8) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def quantizer_of(books: Tensor) -> CodebookQuantizer:
    count, words, size = books.shape
    quantizer = CodebookQuantizer(count * size, count, words)
    dimensions = count * size
    parts = {"loc": torch.zeros(dimensions), "scale": torch.ones(dimensions), "codebooks": books}
    return quantizer.filled(parts | {"dimension_order": torch.arange(dimensions).flip(0)})


@pytest.mark.pipeline
@pytest.mark.parametrize(("books", "words"), DISTORTIONS)
def test_gaussian_vectors_are_quantized_as_well_as_k_means_can(books: int, words: int) -> None:
    torch.set_num_threads(2)
    order = torch.arange(8).flip(0)
    quantizer = quantizer_of(fit_codebooks(gaussian(VECTORS, 0), order, books, words))
    fresh = gaussian(VECTORS, 1)
    error = (quantizer.decode(quantizer.encode(fresh)) - fresh).square().mean()
    assert 0.96 < float(error) / DISTORTIONS[books, words] < 1.02  # some runs of k-means end a little better


def test_every_round_brings_the_means_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    points, errors = gaussian(2_000, 0, 3), []
    for rounds in (1, 2, 4, 8, 16):
        monkeypatch.setattr("tokenbridge.tokenizer.codebook.ROUNDS", rounds)
        errors.append(float(nearest(points, kmeans(points, 20, torch.Generator().manual_seed(0)))[1].sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_clusters_are_found_even_if_some_begin_without_a_point() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    copies = torch.cat([centres[:1].expand(1000, -1), centres[1:]])  # nearly all means begin at the same place
    means = kmeans(copies, 4, torch.Generator().manual_seed(0))
    assert torch.equal(nearest(centres, means)[1], torch.zeros(4))


def test_the_nearest_codeword_is_chosen_and_survives_decoding_and_encoding() -> None:
    quantizer = quantizer_of(gaussian(2 * 16, 0, 3).view(2, 16, 3))
    latents = gaussian(50, 1, 6).view(5, 10, 6)
    tokens = quantizer.encode(latents)
    assert tokens.shape == (5, 10, 2)
    every = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    distances = torch.cdist(latents.flatten(0, 1).double(), quantizer.decode(every).double())
    assert torch.equal(every[distances.argmin(1)], tokens.flatten(0, 1))
    assert torch.equal(quantizer.encode(quantizer.decode(every)), every)


def test_a_codebook_for_each_dimension_is_as_good_as_lloyd_max(vae_latents: Tensor) -> None:
    each = replace(CODEBOOK, codebooks=4, codewords=8)
    errors = [
        sum(row["mse"] for row in quantizer_report(fit_quantizer(vae_latents, config), vae_latents))
        for config in (each, replace(QUANTIZER, family="lloyd_max"))
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)  # k-means stops at a local optimum


def test_the_report_counts_the_bits_of_each_index_once(vae_latents: Tensor) -> None:
    for books, words in ((1, 64), (2, 16)):
        quantizer = fit_quantizer(vae_latents, replace(CODEBOOK, codebooks=books, codewords=words))
        rows = quantizer_report(quantizer, vae_latents)
        tokens = quantizer.encode(to_sequence(quantizer.normalize(vae_latents))).flatten(0, 1)
        counts = [slot.unique(return_counts=True)[1] / len(slot) for slot in tokens.unbind(1)]
        bits = -sum(float((share * share.log2()).sum()) for share in counts)
        assert sum(row["entropy_bits"] for row in rows) == pytest.approx(bits, rel=1e-4)
        assert "saturation" not in rows[0]


@pytest.mark.parametrize("family", ["codebook", "residual", "continuous", "gaussian", "entropy_coded"])
def test_every_family_is_saved_and_loaded(family: str, vae_latents: Tensor, tmp_path: Path) -> None:
    config: QuantizerConfig = replace(CODEBOOK, family=family)
    quantizer = fit_quantizer(vae_latents, config)
    quantizer.save_pretrained(tmp_path)
    again = load_quantizer(tmp_path)
    assert type(again) is type(quantizer)
    assert (again.slots, again.classes) == (config.slots(4), config.classes)
    latents = to_sequence(quantizer.normalize(vae_latents))
    assert torch.equal(again.encode(latents), quantizer.encode(latents))


def test_a_trained_codebook_is_taken_as_it_is(vae_latents: Tensor, tmp_path: Path) -> None:
    config = replace(CODEBOOK, family="trained_codebook", statistics="global")
    trained = to_sequence(vae_latents).flatten(0, 1)[torch.arange(16) * 7] + 0.1
    quantizer = fit_quantizer(vae_latents, config, trained)
    quantizer.save_pretrained(tmp_path)
    again = load_quantizer(tmp_path)
    assert (again.slots, again.classes) == (config.slots(4), config.classes) == (1, 16)
    indices = again.encode(to_sequence(again.normalize(vae_latents)))[..., 0]
    assert torch.equal(indices, torch.cdist(to_sequence(vae_latents), trained).argmin(-1))
    decoded = again.denormalize(to_maps(again.decode(torch.arange(16)[None, :, None]), 4, 4))
    torch.testing.assert_close(to_sequence(decoded)[0], trained)


def test_a_vae_without_a_codebook_has_none_to_take(vae_latents: Tensor) -> None:
    with pytest.raises(UserError, match=r"no trained codebook: set vae\.codewords"):
        fit_quantizer(vae_latents, replace(CODEBOOK, family="trained_codebook", statistics="global"))


def test_continuous_tokens_are_the_latents(vae_latents: Tensor) -> None:
    quantizer = fit_quantizer(vae_latents, replace(QUANTIZER, family="continuous"))
    latents = to_sequence(quantizer.normalize(vae_latents))
    assert torch.equal(quantizer.decode(quantizer.encode(latents)), latents)
    rows = quantizer_report(quantizer, vae_latents)
    assert [row["mse"] for row in rows] == [0.0] * 4
    assert "entropy_bits" not in rows[0]


def test_more_codewords_than_latents_are_refused() -> None:
    with pytest.raises(UserError, match=r"10 latents for quantizer\.codewords=16: lower it"):
        fit_codebooks(gaussian(10, 0), torch.arange(8), 1, 16)


def test_codebooks_that_do_not_divide_the_dimensions_are_refused() -> None:
    with pytest.raises(UserError, match=r"quantizer\.codebooks is 3: it must divide the 8 dimensions"):
        CodebookQuantizer(8, 3, 16)


def test_another_model_is_no_quantizer(tmp_path: Path, vae_latents: Tensor) -> None:
    fit_quantizer(vae_latents, QUANTIZER).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(DimensionwiseQuantizer.__name__, "AutoencoderKL"))
    with pytest.raises(UserError, match="holds a AutoencoderKL, not a quantizer"):
        load_quantizer(tmp_path)
