"""What the suite measures: each part of TokenBridge at several sizes, most of them beside the plain baseline.

Both sides of a case have the same weights, inputs and draws, so they must give the same result. Precision is float32,
without dropout. The sizes `base` and `large` have their full width and fewer blocks.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks import data_loading, plain
from tokenbridge.classifier.network import ImageClassifier, channels_last
from tokenbridge.config import FP32
from tokenbridge.config.model import SamplingSettings
from tokenbridge.config.params import load_params
from tokenbridge.engine.ema import Ema
from tokenbridge.engine.optim import build_optimizers, update_weights
from tokenbridge.evaluation.features import extract_features
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.sampler import Draws, choose_levels, sample_tokens
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.tokenizer.latents import Quantizer
from tokenbridge.training.trainer import NOT_MODEL_ARGUMENTS
from tokenbridge.vae.autoencoder import decode_images, encode_moments, to_unit_range
from tokenbridge.vae.training import VaeTrainer, build_vae

PROJECT = Path(__file__).parents[2]
CONFIG = load_params(PROJECT)
FEWER = {
    "tiny": {},
    "base": {"encoder_depth": 2, "decoder_depth": 2},
    "large": {"encoder_depth": 1, "decoder_depth": 1, "head_depth": 1},
}
LEVELS = {"tiny": CONFIG.quantizer.levels, "base": 64, "large": 64}
CLASSES = CONFIG.data.num_classes
MASKED = 0.85  # of the positions in a training step, about the mean of the released recipe
RATE, DECAY, BETAS, AVERAGED, CLIP = 1e-4, 0.02, (0.9, 0.95), 0.9999, 3.0  # the released recipe's
TOLERANCE = 1e-4

Side = Callable[[], Any]
"""One call. It returns the result: a tensor where there are two sides."""


@dataclass(frozen=True)
class Case:
    """One part at one size; ``plain`` is None where no baseline is meaningful."""

    images: int
    ours: Side
    plain: Side | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None  # what the sides read; it lives as long as the case


def check(ours: Tensor, plain: Tensor) -> None:
    """Check that both sides give the same: integers equal, floats within ``TOLERANCE``.

    Raises:
        AssertionError: if they do not.
    """
    tolerance = TOLERANCE if ours.is_floating_point() else 0
    torch.testing.assert_close(ours, plain, rtol=0, atol=tolerance)


def build_model(size: str, side: int, dimensions: int, levels: int | None = None) -> TokenBridgeTransformer:
    """Return a model with random weights, also where training starts with zeros."""
    sizes = OmegaConf.to_container(OmegaConf.load(PROJECT / f"conf/model/{size}.yaml"))
    assert isinstance(sizes, dict)
    arguments = {str(name): sizes[name] for name in sizes if name not in NOT_MODEL_ARGUMENTS} | FEWER[size]
    torch.manual_seed(0)
    model = TokenBridgeTransformer(
        grid_height=side,
        grid_width=side,
        dimensions=dimensions,
        levels=levels or LEVELS[size],
        num_classes=CLASSES,
        **arguments | {"dropout": 0.0},
    )
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def build_quantizer(dimensions: int, levels: int) -> Quantizer:
    torch.manual_seed(0)
    return fit_quantizer(torch.randn(64, dimensions, 4, 4), replace(CONFIG.quantizer, levels=levels))


def quantize(images: int, positions: int = 256, dimensions: int = 16, levels: int = 64) -> Case:
    quantizer = build_quantizer(dimensions, levels)
    latents = torch.randn(images, positions, dimensions)
    return Case(images, partial(quantizer.encode, latents), partial(plain.quantize, latents, quantizer.levels))


def dequantize(images: int) -> Case:
    quantizer = build_quantizer(16, 64)
    tokens = torch.randint(64, (images, 256, 16))
    return Case(images, partial(quantizer.decode, tokens), partial(plain.dequantize, tokens, quantizer.levels))


def head(size: str, dimensions: int, positions: int) -> Case:
    """The head at sampling. Its "images" are positions."""
    head = build_model(size, 4, dimensions).eval().requires_grad_(False).head
    z, uniforms = torch.randn(positions, head.condition.in_features), torch.rand(positions, dimensions)
    return Case(
        positions,
        lambda: head.sample(z, lambda logits, slot: choose_levels(logits, uniforms[:, slot], 1.0)),
        lambda: plain.head_sample(head, z, uniforms, 1.0),
    )


def sampling(size: str, side: int, dimensions: int, images: int, steps: int) -> Case:
    """Sampling of tokens with guidance."""
    model, quantizer = build_model(size, side, dimensions).eval(), build_quantizer(dimensions, LEVELS[size])
    generators = [torch.Generator().manual_seed(image) for image in range(images)]
    draws = Draws.from_generators(generators, side * side, dimensions)
    settings = SamplingSettings(steps=steps, guidance_scale=3.0, guidance_schedule="linear")
    inputs = (model, quantizer, torch.arange(images) % CLASSES, draws, settings)
    return Case(images, partial(sample_tokens, *inputs), partial(plain.sample_tokens, *inputs))


def training_step(size: str, side: int, dimensions: int, images: int, levels: int | None = None) -> Case:
    """Forward, backward, AdamW and averaged weights; each side trains a model of its own."""
    ours = build_model(size, side, dimensions, levels).train()
    theirs, quantizer = deepcopy(ours), build_quantizer(dimensions, ours.config.levels)
    tokens = torch.randint(ours.config.levels, (images, side * side, dimensions))
    order = torch.rand(images, side * side).argsort(1)
    inputs = (quantizer.decode(tokens), tokens, torch.arange(images) % CLASSES, order, round(MASKED * side * side))
    ema, weights = Ema(ours, AVERAGED, warmup=False), list(theirs.parameters())
    averages = [parameter.detach().clone() for parameter in weights]
    return Case(
        images,
        step_of(ours, partial(ours, *inputs), partial(ema.update, ours)),
        step_of(
            theirs,
            partial(plain.loss, theirs, *inputs),
            partial(plain.update_average, averages, weights, AVERAGED),
        ),
    )


def step_of(model: TokenBridgeTransformer, loss: Callable[[], Tensor], average: Side) -> Side:
    optimizers = list(build_optimizers(model, learning_rate=RATE, weight_decay=DECAY, betas=BETAS).values())

    def step() -> Tensor:
        value = loss()
        value.backward()
        update_weights(value, model, optimizers, factor=1.0, clip_norm=CLIP, step=0)
        average()
        return value.detach()

    return step


def loader(kind: str, images: int) -> Case:
    """Reading of stored moments or tokens in a random order; plain reads one npz file per image."""
    folder = tempfile.TemporaryDirectory()
    data_loading.write_all(Path(folder.name), images)
    order, flips = torch.randperm(images), torch.randint(data_loading.FLIPS, (images,))

    def side(name: str) -> Side:
        reader = data_loading.make_reader(Path(folder.name), name)
        batches = list(zip(order.split(data_loading.BATCH), flips.split(data_loading.BATCH), strict=True))
        return lambda: torch.cat([reader(*batch) for batch in batches])

    return Case(images, side(kind), side(f"{kind}_npz"), folder)


def random_images(count: int) -> np.ndarray:
    size = CONFIG.data.image_size
    return np.random.default_rng(0).integers(256, size=(count, 3, size, size), dtype=np.uint8)


def classifier_step(images: int) -> Case:
    """Forward and backward, without the optimizer."""
    names = [str(label) for label in range(CLASSES)]
    model = channels_last(ImageClassifier(width=CONFIG.classifier.width, label_names=names))
    inputs, labels = torch.from_numpy(random_images(images)), torch.zeros(images, dtype=torch.long)
    return Case(images, lambda: F.cross_entropy(model(inputs), labels).backward())


def vae_step(images: int, share: float) -> Case:
    """A step after this share of the training; the discriminator takes part in the second half."""
    total = 1000
    config = replace(CONFIG.vae, precision=FP32)
    trainer = VaeTrainer(config, build_vae(config, CONFIG.data.image_size).train(), total, torch.device("cpu"))
    inputs = to_unit_range(random_images(images))
    return Case(images, lambda: trainer.step(inputs, round(share * total)))


def encode(images: int) -> Case:
    vae = build_vae(CONFIG.vae, CONFIG.data.image_size).eval()
    return Case(images, partial(encode_moments, vae, random_images(images)))


def decode(images: int) -> Case:
    vae = build_vae(CONFIG.vae, CONFIG.data.image_size).eval()
    latents = encode_moments(vae, random_images(images))[:, : CONFIG.vae.dimensions].contiguous()
    return Case(images, partial(decode_images, vae, latents))


def features(images: int) -> Case:
    size = CONFIG.evaluate.feature_size
    return Case(images, partial(extract_features, random_images(images), size, precision=FP32))


def command(*arguments: str, folder: tempfile.TemporaryDirectory[str] | None = None) -> Case:
    """A new process of the command line, with its imports."""
    words = [sys.executable, "-m", "tokenbridge.cli", *arguments]
    return Case(1, partial(subprocess.run, words, cwd=PROJECT, check=True, capture_output=True), folder=folder)


def first_image() -> Case:
    """A new process that loads a pipeline and draws one image."""
    folder = tempfile.TemporaryDirectory()
    model, quantizer = build_model("tiny", SIDE, DIMENSIONS), build_quantizer(DIMENSIONS, LEVELS["tiny"])
    pipeline = TokenBridgePipeline(build_vae(CONFIG.vae, CONFIG.data.image_size), model, quantizer)
    pipeline.save_pretrained(f"{folder.name}/model")
    places = ("--model", f"{folder.name}/model", "--out", f"{folder.name}/image.png")
    return command("sample", *places, "--count", "1", "--class", "0", folder=folder)


SIDE, DIMENSIONS = 4, CONFIG.vae.dimensions  # of the default's tokens
CASES: dict[str, Callable[[], Case]] = {
    "quantize": partial(quantize, 64),
    "dequantize": partial(dequantize, 64),
    "head, `tiny` width, C 8": partial(head, "tiny", 8, 150),
    "head, `tiny` width, C 16": partial(head, "tiny", 16, 150),
    "head, `base` width, C 16": partial(head, "base", 16, 16),
    "sampling, `tiny`, 16 steps": partial(sampling, "tiny", SIDE, DIMENSIONS, 100, 16),
    "sampling, `tiny`, S 256, 64 steps": partial(sampling, "tiny", 16, 16, 4, 64),
    "sampling, `base`, S 64, 16 steps": partial(sampling, "base", 8, 16, 1, 16),
    "training step, `tiny`": partial(training_step, "tiny", SIDE, DIMENSIONS, 128),
    "training step, `base`, S 64": partial(training_step, "base", 8, 16, 4),
    "training step, `large`, S 64": partial(training_step, "large", 8, 16, 4),
    "loader, moments": partial(loader, "moments", 512),
    "loader, tokens": partial(loader, "tokens", 512),
    "classifier step": partial(classifier_step, CONFIG.classifier.batch_size),
    "VAE step": partial(vae_step, CONFIG.vae.batch_size, 0.0),
    "VAE step, discriminator": partial(vae_step, CONFIG.vae.batch_size, 0.5),
    "encode": partial(encode, 250),
    "decode": partial(decode, 250),
    "EfficientNet-Lite0's features": partial(features, 250),
    "start-up, `tokenbridge --help`": partial(command, "--help"),
    "first image of `tokenbridge sample`": first_image,
}
