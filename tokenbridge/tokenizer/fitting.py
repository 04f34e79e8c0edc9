"""Fitting a quantizer of any family to latents, loading one, and its report.

Shapes: N images, C dimensions, h x w positions, M = N h w latents, G slots of a token.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.base.finite import check_finite
from tokenbridge.base.loading import load_kind
from tokenbridge.config import QuantizerConfig
from tokenbridge.tokenizer.codebook import CodebookQuantizer, fit_codebooks
from tokenbridge.tokenizer.continuous import ContinuousLatents
from tokenbridge.tokenizer.latents import (
    Quantizer,
    normalisation,
    order_of_dimensions,
    standardise,
    to_patches,
    to_sequence,
)
from tokenbridge.tokenizer.lattice import E8Quantizer
from tokenbridge.tokenizer.levels import FIXED_FAMILIES, lloyd_max_levels, uniform_levels
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.tokenizer.residual import ResidualQuantizer, fit_stages

KINDS: tuple[type[Quantizer], ...] = (
    DimensionwiseQuantizer,
    CodebookQuantizer,
    ResidualQuantizer,
    E8Quantizer,
    ContinuousLatents,
)


def fit_quantizer(vae_latents: Tensor, config: QuantizerConfig, trained: Tensor | None = None) -> Quantizer:
    """Fit loc, scale, order, and levels or codebooks to posterior samples [N, C0, H, W] in VAE units.

    Args:
        trained: the codebook [V, C0] that was trained with the VAE, in VAE units; used by ``trained_codebook`` only.

    Raises:
        UserError: if the settings do not fit the latents, or a latent is NaN or infinite.
    """
    check_finite("the latents to fit the quantizer to", vae_latents)
    patches = to_patches(vae_latents, config.patch_size)
    loc, scale = normalisation(patches, config)
    latents = standardise(patches, loc, scale)
    order = order_of_dimensions(latents, config)
    fitted = {"loc": loc, "scale": scale, "dimension_order": order}
    shape = {"dimensions": len(loc), "patch_size": config.patch_size}
    if config.family == "continuous":
        return ContinuousLatents(**shape).filled(fitted)
    if config.family == "trained_codebook":
        if trained is None:
            raise UserError("the VAE has no trained codebook: set vae.codewords, and train the VAE again")
        empty = CodebookQuantizer(num_codebooks=1, num_codewords=len(trained), **shape)
        return empty.filled(fitted | {"codebooks": ((trained - loc) / scale)[None, :, order]})
    if config.family == "codebook":
        empty = CodebookQuantizer(num_codebooks=config.codebooks, num_codewords=config.codewords, **shape)
        books = fit_codebooks(to_sequence(latents).flatten(0, 1), order, config.codebooks, config.codewords)
        return empty.filled(fitted | {"codebooks": books})
    if config.family == "residual":
        stages = ResidualQuantizer(num_codebooks=config.codebooks, num_codewords=config.codewords, **shape)
        books = fit_stages(to_sequence(latents).flatten(0, 1), config.codebooks, config.codewords)
        return stages.filled(fitted | {"codebooks": books})
    if config.family == "e8":
        return E8Quantizer(step=config.step, reach=config.reach, **shape).filled(fitted)
    levels = _levels(latents, config)
    return DimensionwiseQuantizer(num_levels=levels.shape[1], **shape).filled(fitted | {"levels": levels})


def load_quantizer(folder: Path, **options: Any) -> Quantizer:
    """Load the quantizer of any family that ``save_pretrained`` wrote.

    Args:
        options: of ``load_whole``.

    Raises:
        LoadError: as ``load_kind``.
    """
    return load_kind(KINDS, folder, "a quantizer", **options)


def _levels(latents: Tensor, config: QuantizerConfig) -> Tensor:
    if config.family in FIXED_FAMILIES:
        return FIXED_FAMILIES[config.family](config.levels, config.range).expand(latents.shape[1], -1)
    if config.family == "entropy_coded":
        levels = uniform_levels(2 * config.reach + 1, (config.reach + 0.5) * config.step)
        return levels.expand(latents.shape[1], -1)
    return lloyd_max_levels(latents.transpose(0, 1).flatten(1), config.levels)


def quantizer_report(quantizer: Quantizer, vae_latents: Tensor) -> list[dict[str, float]]:
    """Return a row of quality measures for each dimension, from latents [N, C0, H, W] in VAE units.

    Columns:
        dimension, place: the dimension, and its place in the order.
        loc, scale: the quantizer's normalisation.
        mse: the squared error of normalised latents.
    Not of continuous latents:
        sqnr_db: signal over quantization noise, in dB.
        entropy_bits: the entropy of the index. The dimensions that an index tells about share its entropy equally.
        bits_above_bound: entropy_bits - R(D), with R(D) = max(0, log2(variance / mse) / 2). R(D) is the rate that a
            Gaussian source needs at that mse. No source of equal variance needs more, so these bits do not reduce
            the mse. It can be negative for codebooks, because dependent dimensions need fewer bits together.
    Of levels:
        saturation: the share of latents beyond the outermost levels.
    """
    sequence = to_sequence(quantizer.normalize(vae_latents)).flatten(0, 1)  # [M, C]
    tokens = quantizer.encode(sequence)
    error = (sequence - quantizer.decode(tokens)).square().mean(0)
    columns = {
        "dimension": torch.arange(sequence.shape[1]),
        "place": quantizer.dimension_order.argsort(),
        "loc": quantizer.loc,
        "scale": quantizer.scale,
        "mse": error,
    }
    if quantizer.classes is not None:
        entropy = entropy_bits(quantizer, tokens)
        bound = (sequence.var(0, correction=0) / error).log2().clamp_min(0) / 2
        columns |= {
            "sqnr_db": 10 * (sequence.square().mean(0) / error).log10(),
            "entropy_bits": entropy,
            "bits_above_bound": entropy - bound,
        }
    if isinstance(quantizer, DimensionwiseQuantizer):
        outside = (sequence < quantizer.levels[:, 0]) | (sequence > quantizer.levels[:, -1])
        columns["saturation"] = outside.float().mean(0)
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


def entropy_bits(quantizer: Quantizer, tokens: Tensor) -> Tensor:
    """Return the entropy of the indices of tokens [M, G], shared equally by the dimensions [C] of each slot."""
    used = [slot.bincount(minlength=quantizer.classes or 0).double() / len(slot) for slot in tokens.unbind(-1)]
    bits = torch.stack([torch.special.entr(shares).sum() / math.log(2) for shares in used])
    told = quantizer.told.double()
    return (bits / told.sum(1)) @ told
