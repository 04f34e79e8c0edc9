"""A pipeline of random weights that draws 8 x 8 pixels."""

from dataclasses import replace

import torch

from tests.vae.test_autoencoder import CONFIG as VAE
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.vae.training import build_vae

NAMES = ["Sneaker", "Bag", "Ankle boot"]


def build_pipeline(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> TokenBridgePipeline:
    torch.manual_seed(0)
    vae = build_vae(replace(VAE, dimensions=4), 8).eval()
    return TokenBridgePipeline(vae, model, quantizer, NAMES)
