"""Operations per second of each stage's work, as a share of the processor's matrix rate in the same precision.

    python -m benchmarks.arithmetic --precisions fp32 bf16

The default settings on random images and latents. A row is the median of several calls: one step of a training, one
batch of encoding, decoding or sampling. FLOPs are counted by torch, matrix products and convolutions only, a product
with its sum as two. The matrix rate is that of a product of 1024 x 1024 matrices, measured beside each row, since other
work on the machine changes it. Prints tables in Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.support.small_data import write_moments
from tokenbridge.base.checks import Precision
from tokenbridge.base.device import DTYPES, autocast, device_name
from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.classifier.network import ImageClassifier, channels_last
from tokenbridge.config import FP32, ClassifierConfig, Config, VaeConfig
from tokenbridge.config.params import load_params
from tokenbridge.evaluation.features import extract_features
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.samples import draw_samples
from tokenbridge.tokenizer.quantizer import fit_quantizer
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.trainer import Trainer
from tokenbridge.vae.autoencoder import decode_images, encode_moments, to_unit_range
from tokenbridge.vae.training import VaeTrainer, build_vae

PROJECT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SIDE = 1024  # of the matrices whose product gives the rate
CALLS = 7
BATCH = 250  # images, where there is no batch of training

Work = tuple[str, int, Callable[[], object]]
"""What it is, its images, one call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=[FP32])
    for precision in parser.parse_args().precisions:
        print(f"\n{device_name(CPU)}, {precision}\n")
        print(table(load_params(PROJECT), precision), flush=True)


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype) for _ in range(2))
    return 2 * SIDE**3 / seconds(lambda: a @ b)


def seconds(call: Callable[[], object]) -> float:
    """Median over calls, after one to warm up."""
    call()
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def table(config: Config, precision: Precision) -> str:
    lines = [
        "| work | images | ms an image | MFLOP an image | GFLOP/s | matrix rate | share |",
        "|---|" + "---|" * 6,
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, images, call in works(config, precision, Path(folder)):
            each, flops = seconds(call) / images, count_flops(call) / images
            done, rate = flops / each, matrix_rate(DTYPES[precision])
            lines.append(
                f"| {name} | {images} | {1e3 * each:.2f} | {flops / 1e6:.0f} | {done / 1e9:.0f} "
                f"| {rate / 1e9:.0f} | {done / rate:.0%} |"
            )
    return "\n".join(lines)


def count_flops(call: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return int(counter.get_total_flops())


def works(config: Config, precision: Precision, folder: Path) -> Iterator[Work]:
    """Each stage's work, at the default's sizes."""
    size, dimensions = config.data.image_size, config.vae.dimensions
    images = np.random.default_rng(0).integers(256, size=(BATCH, 3, size, size), dtype=np.uint8)
    names = [str(label) for label in range(config.data.num_classes)]
    yield classifier_step(config.classifier, names, images, precision)
    yield from vae_steps(replace(config.vae, precision=precision), images)
    vae = build_vae(config.vae, size).eval().requires_grad_(False)
    latents = encode_moments(vae, images)[:, :dimensions].contiguous()
    yield "`encode`", BATCH, cast(lambda: encode_moments(vae, images), precision)
    yield "decoding, in `reconstruct`", BATCH, cast(lambda: decode_images(vae, latents), precision)
    feature_size = config.evaluate.feature_size
    yield "EfficientNet-Lite0's features", BATCH, lambda: extract_features(images, feature_size, precision=precision)
    quantizer = fit_quantizer(latents, config.quantizer)
    data = FreshTokens(write_moments(folder / "moments", latents), quantizer)
    model = replace(config.models["tiny"], train=replace(config.models["tiny"].train, precision=precision))
    trainer = Trainer(model, data, quantizer, folder, config.launcher, CPU, SINGLE_PROCESS)
    yield "`train@tiny`", model.train.batch_size, lambda: trainer.step(0)
    pipeline = TokenBridgePipeline(vae, trainer.averaged_model(), quantizer, names)
    draw = partial(draw_samples, pipeline, list(range(BATCH)), 0, config.generate)
    yield "`generate@tiny`", BATCH, cast(draw, precision)


def cast(call: Callable[[], object], precision: str) -> Callable[[], object]:
    """The same call in this precision."""

    def within() -> object:
        with autocast(CPU, precision):
            return call()

    return within


def classifier_step(config: ClassifierConfig, names: list[str], images: np.ndarray, precision: str) -> Work:
    """Forward and backward, without the optimizer."""
    model = channels_last(ImageClassifier(width=config.width, label_names=names))
    inputs = torch.from_numpy(images[: config.batch_size])

    def step() -> None:
        with autocast(CPU, precision):
            logits = model(inputs)
        F.cross_entropy(logits.float(), torch.zeros(len(inputs), dtype=torch.long)).backward()

    return "`classifier`", len(inputs), step


def vae_steps(config: VaeConfig, images: np.ndarray) -> Iterator[Work]:
    """Before the discriminator takes part, and after."""
    total = 1000
    trainer = VaeTrainer(config, build_vae(config, images.shape[-1]).train(), total, CPU)
    inputs = to_unit_range(images[: config.batch_size])
    yield "`vae`, without discriminator", len(inputs), lambda: trainer.step(inputs, 0)
    yield "`vae`, with discriminator", len(inputs), lambda: trainer.step(inputs, total // 2)


if __name__ == "__main__":
    main()
