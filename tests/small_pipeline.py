"""A pipeline of random weights that draws 8 x 8 pixels."""

from dataclasses import replace

import torch

from tests.test_vae import CONFIG as VAE
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.pipeline import TokenBridgePipeline
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.vae_training import build_vae

NAMES = ["Sneaker", "Bag", "Ankle boot"]


def build_pipeline(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> TokenBridgePipeline:
    torch.manual_seed(0)
    vae = build_vae(replace(VAE, dimensions=4), 8).eval()
    return TokenBridgePipeline(vae, model, quantizer, NAMES)
