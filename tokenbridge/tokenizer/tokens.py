"""Tokens on disk: indices of posterior samples of every training image, a few bits each, read by memory map.

Shapes: N images, K samples of each, F flips, S = h x w positions, G slots of a token, b bits per index.
"""

from collections.abc import Iterator
from itertools import product
from math import gcd
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenbridge.base.arrays import ArraysError, LabelledArrays, row_shards, write_manifest, write_shard
from tokenbridge.base.chunks import Advance, Chunk, make_chunks
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import sha256_tree
from tokenbridge.base.seeding import generator
from tokenbridge.config import LauncherConfig, TokenizeConfig
from tokenbridge.tokenizer.latents import Quantizer, to_sequence
from tokenbridge.tokenizer.moments import Moments, sample_posterior

BYTE = 8


def token_grid(moments: Moments, quantizer: Quantizer) -> tuple[int, int]:
    """Return h and w of the tokens: one position for each patch of the VAE's positions."""
    patch_size = quantizer.config.patch_size
    return moments.height // patch_size, moments.width // patch_size


def posterior_tokens(posterior: Tensor, noise: Tensor, quantizer: Quantizer) -> Tensor:
    """Return tokens [n, S, G], in natural order, of moments [n, 2C0, h0, w0] and noise [n, C0, h0, w0] in VAE shape.

    The latents are quantized on the quantizer's device.
    """
    vae_latents = sample_posterior(posterior, noise).to(quantizer.loc.device)
    return quantizer.encode(to_sequence(quantizer.normalize(vae_latents)))


def bits_per_index(levels: int, packing: str) -> int:
    """Return b: the fewest bits for ``levels`` when packing is "bits", a whole byte when it is "uint8"."""
    return BYTE if packing == "uint8" else (levels - 1).bit_length()


def stored_classes(quantizer: Quantizer) -> int:
    """Return the number of values of a slot.

    Raises:
        UserError: if an index needs more than a byte, or if tokens are real numbers.
    """
    if quantizer.classes is None or quantizer.classes > 2**BYTE:
        raise UserError("tokens are stored as indices of a byte at most: train on moments with this quantizer")
    return quantizer.classes


def packed_bytes(count: int, bits: int) -> int:
    """Return the number of bytes of ``count`` indices, rounded up."""
    return -(-count * bits // BYTE)


def pack(indices: np.ndarray, bits: int) -> np.ndarray:
    """Pack integers [..., M] below 2**bits into bytes [..., packed_bytes(M, bits)], most significant bit first."""
    digits = np.unpackbits(indices.astype(np.uint8)[..., None], axis=-1)[..., BYTE - bits :]
    return np.packbits(digits.reshape(*indices.shape[:-1], -1), axis=-1)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the ``count`` indices of packed bytes, uint8 [..., count]: the inverse of ``pack``.

    The places of indices within bytes repeat after ``period`` indices. So each place is read from all groups of
    ``period`` indices at once.
    """
    period = BYTE // gcd(bits, BYTE)
    size = packed_bytes(period, bits)  # bytes of a group
    groups = -(-count // period)
    if missing := groups * size - packed.shape[-1]:
        packed = np.concatenate([packed, np.zeros((*packed.shape[:-1], missing), np.uint8)], -1)
    grouped = packed.reshape(*packed.shape[:-1], groups, size)
    column = np.ascontiguousarray(np.moveaxis(grouped, -1, 0))  # contiguous, for speed
    indices = np.empty((*grouped.shape[:-1], period), np.uint8)
    for place in range(period):
        byte, offset = divmod(place * bits, BYTE)
        spare = BYTE - bits - offset  # bits right of the index in its byte; if negative, its bits in the next byte
        value = column[byte] >> spare if spare >= 0 else column[byte] << -spare
        if spare < 0:
            value |= column[byte + 1] >> (BYTE + spare)
        indices[..., place] = value & (2**bits - 1)
    return indices.reshape(*packed.shape[:-1], -1)[..., :count]


def sampled_tokens(moments: Moments, quantizer: Quantizer, images: Tensor, samples: int, seed: int) -> Tensor:
    """Return tokens [n, K, F, S, G] of K = ``samples`` posterior samples of every flip of ``images`` [n].

    Each sample's noise is a function of (seed, image, sample, flip). It does not depend on the rest of the batch.
    """
    shape = (moments.dimensions, moments.height, moments.width)
    drawn = []
    for sample, flip in product(range(samples), range(moments.flips)):
        streams = [generator(seed, "token noise", image, sample, flip) for image in images.tolist()]
        noise = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
        posterior = moments.read(images, torch.full_like(images, flip))
        drawn.append(posterior_tokens(posterior, noise, quantizer).cpu())
    return torch.stack(drawn, 1).unflatten(1, (samples, moments.flips))


def write_shards(
    folder: Path,
    moments: Moments,
    quantizer: Quantizer,
    config: TokenizeConfig,
    *,
    seed: int,
    launcher: LauncherConfig,
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Write the shards that ``folder`` lacks; the processes share the work."""
    bits = bits_per_index(stored_classes(quantizer), config.packing)

    def packed(chunk: Chunk, advance: Advance) -> Iterator[np.ndarray]:
        for images in torch.arange(chunk.span.start, chunk.span.stop).split(launcher.batch_size):
            tokens = sampled_tokens(moments, quantizer, images, config.samples, seed)
            yield pack(tokens.flatten(3).numpy(), bits)
            advance(len(images))

    def tokenize(chunk: Chunk, advance: Advance) -> None:
        write_shard(folder, chunk.index, len(chunk.span), packed(chunk, advance))

    make_chunks("tokenize", row_shards(folder, len(moments)), tokenize, processes=processes, launcher=launcher)


def complete_tokens(
    folder: Path, moments: Moments, quantizer: Quantizer, config: TokenizeConfig, quantizer_folder: Path
) -> int:
    """Write the manifest, with the digest of ``quantizer_folder``. All shards must exist.

    Returns:
        The bytes of one stored sample of one flip.
    """
    slots, levels = quantizer.slots, stored_classes(quantizer)
    bits = bits_per_index(levels, config.packing)
    height, width = token_grid(moments, quantizer)
    stored = {"samples": config.samples, "flips": moments.flips, "packing": config.packing, "bits": bits}
    shape = {"height": height, "width": width, "dimensions": slots, "levels": levels}
    digest = sha256_tree(quantizer_folder)
    write_manifest(folder, moments.labels.numpy(), moments.num_classes, **stored, **shape, quantizer=digest)
    return packed_bytes(height * width * slots, bits)


class StoredTokens:
    """Random access to a folder of shards [n, K, F, bytes]; training data like ``FreshTokens``.

    Raises:
        ArraysError: if files or rows are missing, or if the tokens were made with another quantizer than
            ``quantizer_folder``'s.
    """

    def __init__(self, folder: Path, quantizer_folder: Path) -> None:
        self._arrays = LabelledArrays(folder, "tokenize")
        manifest = self._arrays.manifest
        if manifest["quantizer"] != sha256_tree(quantizer_folder):
            raise ArraysError(
                f"{folder} was made with another quantizer than {quantizer_folder}: run `dvc repro tokenize`"
            )
        self.samples, self.flips, _ = self._arrays.row_shape
        self.labels = self._arrays.labels
        self.num_classes: int = manifest["num_classes"]
        self.height: int = manifest["height"]
        self.width: int = manifest["width"]
        self._dimensions: int = manifest["dimensions"]
        self._bits: int = manifest["bits"]

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, indices: Tensor, samples: Tensor, flips: Tensor) -> Tensor:
        """Return tokens [n, S, G], in natural order, of sample and flip i of image ``indices[i]``.

        Args:
            samples: which sample of each image, [n].
            flips: which flip of each image, [n].
        """
        packed = self._arrays.read(indices.numpy(), samples.numpy(), flips.numpy())
        positions = self.height * self.width
        tokens = torch.from_numpy(unpack(packed, self._bits, positions * self._dimensions))
        return tokens.long().unflatten(1, (positions, self._dimensions))

    def draw(self, indices: Tensor, random: torch.Generator, part: slice = slice(None)) -> Tensor:
        """Return the tokens of a stored sample and flip, drawn with ``random``, of each image of ``indices[part]``."""
        flips = torch.randint(self.flips, indices.shape, generator=random)
        samples = torch.randint(self.samples, indices.shape, generator=random)
        return self.read(indices[part], samples[part], flips[part])
