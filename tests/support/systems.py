"""The systems that are compared, small: what each changes in quantizer and model."""

from dataclasses import replace

import torch

from tests.support.small_model import MODEL, QUANTIZER, random_model
from tokenbridge.config import ModelConfig, QuantizerConfig
from tokenbridge.config.model import Trunk
from tokenbridge.model import AutoregressiveModel
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.tokenizer.latents import Quantizer

CODEBOOK, CONTINUOUS = replace(QUANTIZER, family="codebook"), replace(QUANTIZER, family="continuous")
SYSTEMS: dict[str, tuple[QuantizerConfig, ModelConfig]] = {
    "codebook": (CODEBOOK, MODEL),
    "product": (replace(CODEBOOK, codebooks=2, codewords=8), MODEL),
    "residual": (replace(CODEBOOK, family="residual", codebooks=3), MODEL),
    "entropy_coded": (replace(QUANTIZER, family="entropy_coded"), MODEL),
    "mixture": (CONTINUOUS, replace(MODEL, head="mixture")),
    "diffusion": (CONTINUOUS, replace(MODEL, head="diffusion")),
    "flow": (CONTINUOUS, replace(MODEL, head="flow")),
    "bits": (QUANTIZER, replace(MODEL, head="bits")),
}


def random_system(
    name: str, vae_latents: torch.Tensor, trunk: Trunk = "masked"
) -> tuple[AutoregressiveModel, Quantizer]:
    """A model of random weights, and the quantizer of its tokens; the system ``levels`` is the one that is compared."""
    config, model = SYSTEMS.get(name, (QUANTIZER, MODEL))
    config = replace(config, order="natural" if trunk == "elements" else config.order)
    quantizer = fit_quantizer(vae_latents, config)
    shape = {"levels": quantizer.classes, "slots": quantizer.slots, "head": model.head}
    return random_model(trunk, **shape), quantizer
