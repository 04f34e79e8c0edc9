"""What the stage ``train@tiny`` needs, small, in a folder that has dvc.yaml."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor

from tests.support.checkout import CHECKOUT
from tests.support.small_data import write_moments
from tests.support.small_model import random_model
from tests.support.small_pipeline import NAMES, build_pipeline
from tokenbridge.config.params import PARAMS_FILE, compose_config
from tokenbridge.images.shards import write_manifest
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer


def write_inputs(
    root: Path, vae_latents: Tensor, quantizer: DimensionwiseQuantizer, overrides: Sequence[str] = ()
) -> None:
    """Settings of the smoke run with ``overrides``, images' manifest, moments, VAE and quantizer."""
    settings = compose_config(["experiment=smoke", "train.precision=fp32", *overrides], CHECKOUT / "conf")
    OmegaConf.save(settings, root / PARAMS_FILE)
    for folder in ("moments", "validation_moments"):
        write_moments(root / "data" / folder, vae_latents)
    (root / "data/images").mkdir()
    write_manifest(root / "data/images", name="shapes", image_size=8, label_names=NAMES, splits={})
    build_pipeline(random_model(), quantizer).vae.save_pretrained(root / "models/vae")
    quantizer.save_pretrained(root / "models/quantizer")
