"""Residual codes: what each stage adds, and what greedy encoding keeps."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.small_model import QUANTIZER
from tests.tokenizer.test_codebook import gaussian
from tokenbridge.base.errors import UserError
from tokenbridge.tokenizer.codebook import nearest
from tokenbridge.tokenizer.fitting import fit_quantizer, quantizer_report
from tokenbridge.tokenizer.latents import to_sequence
from tokenbridge.tokenizer.residual import ResidualQuantizer, fit_stages

RESIDUAL = replace(QUANTIZER, family="residual", codebooks=3)
VECTORS = 200_000
# distortion for each dimension of iid N(0, 1) vectors of 8 dimensions, by the number of stages of 256 codewords
DISTORTIONS = {1: 0.325, 2: 0.107, 3: 0.0370}


def quantizer_of(books: Tensor) -> ResidualQuantizer:
    stages, words, dimensions = books.shape
    parts = {"loc": torch.zeros(dimensions), "scale": torch.ones(dimensions), "codebooks": books}
    return ResidualQuantizer(dimensions, stages, words).filled(parts | {"dimension_order": torch.arange(dimensions)})


def errors_by_stage(books: Tensor, latents: Tensor) -> list[float]:
    """The squared error of the first 1, 2, ... stages."""
    parts = [quantizer_of(books[: stage + 1]) for stage in range(len(books))]
    return [float((part.decode(part.encode(latents)) - latents).square().mean()) for part in parts]


@pytest.mark.pipeline
def test_gaussian_vectors_have_the_known_distortion_after_each_stage() -> None:
    torch.set_num_threads(2)
    books = fit_stages(gaussian(VECTORS, 0), len(DISTORTIONS), 256)
    assert errors_by_stage(books, gaussian(VECTORS, 1)) == pytest.approx(list(DISTORTIONS.values()), rel=0.02)


def test_each_stage_lowers_the_distortion() -> None:
    books = fit_stages(gaussian(4_000, 0), 4, 32)
    errors = errors_by_stage(books, gaussian(4_000, 1))
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(errors))


def test_each_index_is_of_the_codeword_nearest_to_what_is_left() -> None:
    books = gaussian(3 * 16, 0, 5).view(3, 16, 5)
    latents = gaussian(50, 1, 5)
    quantizer = quantizer_of(books)
    tokens = quantizer.encode(latents.view(5, 10, 5))
    assert tokens.shape == (5, 10, 3)
    left = latents
    for book, indices in zip(books, tokens.flatten(0, 1).unbind(1), strict=True):
        assert torch.equal(nearest(left, book)[0], indices)
        left = left - book[indices]
    torch.testing.assert_close(quantizer.decode(tokens).flatten(0, 1), latents - left)


def test_the_first_indices_are_the_token_of_fewer_stages() -> None:
    books = fit_stages(gaussian(2_000, 0), 3, 16)
    latents = gaussian(100, 1)
    assert torch.equal(quantizer_of(books).encode(latents)[:, :2], quantizer_of(books[:2]).encode(latents))


def test_one_stage_is_a_codebook_and_survives_decoding_and_encoding(vae_latents: Tensor) -> None:
    one = replace(RESIDUAL, codebooks=1, order="natural")
    residual, codebook = (fit_quantizer(vae_latents, replace(one, family=name)) for name in ("residual", "codebook"))
    latents = to_sequence(residual.normalize(vae_latents))
    tokens = residual.encode(latents)
    assert torch.equal(tokens, codebook.encode(latents))
    assert torch.equal(residual.encode(residual.decode(tokens)), tokens)


def test_a_decoded_token_may_have_another_token_because_the_search_is_greedy() -> None:
    quantizer = quantizer_of(torch.tensor([[[0.0], [1.0]], [[-0.6], [0.0]]]))
    token = quantizer.encode(torch.tensor([0.55]))
    assert token.tolist() == [1, 0]
    assert quantizer.decode(token).item() == pytest.approx(0.4)
    assert quantizer.encode(quantizer.decode(token)).tolist() == [0, 1]


def test_the_dimensions_share_the_bits_of_all_indices(vae_latents: Tensor) -> None:
    quantizer = fit_quantizer(vae_latents, RESIDUAL)
    rows = quantizer_report(quantizer, vae_latents)
    tokens = quantizer.encode(to_sequence(quantizer.normalize(vae_latents))).flatten(0, 1)
    counts = [slot.unique(return_counts=True)[1] / len(slot) for slot in tokens.unbind(1)]
    bits = -sum(float((share * share.log2()).sum()) for share in counts)
    assert [row["entropy_bits"] for row in rows] == pytest.approx([bits / 4] * 4, rel=1e-4)


def test_the_number_of_stages_need_not_divide_the_dimensions(vae_latents: Tensor) -> None:
    quantizer = fit_quantizer(vae_latents, RESIDUAL)
    assert (quantizer.slots, quantizer.classes) == (RESIDUAL.slots(4), RESIDUAL.classes) == (3, 16)


def test_more_codewords_than_latents_are_refused() -> None:
    with pytest.raises(UserError, match=r"10 latents for quantizer\.codewords=16: lower it"):
        fit_stages(gaussian(10, 0), 2, 16)
