"""Moments and tokens of a few images, as the stages write them."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tests.support.small_model import LAUNCHER, SHAPE
from tokenbridge.base.arrays import LabelledArrays, write_manifest, write_shard
from tokenbridge.config import TokenizeConfig
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.tokenizer.tokens import StoredTokens, complete_tokens, write_shards

LOG_VARIANCE = -6.0
SAMPLES = 3


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> LabelledArrays:
    """Images and their labels as a training reads them."""
    folder.mkdir(parents=True)
    write_shard(folder, 0, len(images), [images])
    write_manifest(folder, labels, int(labels.max()) + 1)
    return LabelledArrays(folder, "tests")


def write_moments(folder: Path, vae_latents: torch.Tensor) -> Moments:
    """Two shards and two flips, of means ``vae_latents`` and little variance."""
    folder.mkdir(parents=True)
    moments = torch.cat([vae_latents, torch.full_like(vae_latents, LOG_VARIANCE)], dim=1)
    both = torch.stack([moments, moments.flip(-1)], dim=1).half().numpy()
    for index, part in enumerate(np.split(both, 2)):
        write_shard(folder, index, len(part), [part])
    write_manifest(folder, np.arange(len(both)) % SHAPE["num_classes"], SHAPE["num_classes"])
    return Moments(folder)


def store_tokens(
    folder: Path,
    moments: Moments,
    quantizer: DimensionwiseQuantizer,
    packing: Literal["bits", "uint8"] = "bits",
    batch_size: int = 8,
) -> StoredTokens:
    """``SAMPLES`` samples of ``moments`` in folder/tokens, beside the quantizer; a rerun goes on."""
    quantizer.save_pretrained(folder / "quantizer")
    config = TokenizeConfig(outs=["tokens"], packing=packing, samples=SAMPLES)
    launcher = replace(LAUNCHER, batch_size=batch_size)
    write_shards(folder / "tokens", moments, quantizer, config, seed=0, launcher=launcher)
    complete_tokens(folder / "tokens", moments, quantizer, config, folder / "quantizer")
    return StoredTokens(folder / "tokens", folder / "quantizer")
