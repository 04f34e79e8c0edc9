"""Speculative sampling against plain sampling, on a trained pipeline with a draft.

    python -m benchmarks.speculative models/tiny

Prints the head's passes for each token, and the time of an image's tokens by both, in turns; a figure is the median.
Guidance and steps are those of params.yaml.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from tokenbridge.base.device import best_device, device_name
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import SamplingSettings
from tokenbridge.config.params import load_params
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.sampler import Draws, sample_tokens

PROJECT = Path(__file__).parents[1]
BATCHES = (1, 10, 100)
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Speculative sampling against plain sampling.")
    parser.add_argument("pipeline", type=Path, help="pipeline folder of a model with draft_depth")
    pipeline = TokenBridgePipeline.from_pretrained(parser.parse_args().pipeline).to(best_device())
    threads = torch.get_num_threads()
    print(f"{device_name(pipeline.transformer.device)}, {threads} threads, {pipeline.transformer.head.slots} slots\n")
    print(
        "| images | passes per token | plain, ms an image | speculative, ms an image | ratio |\n|---|---|---|---|---|"
    )
    settings = load_params(PROJECT).generate
    for images in BATCHES:
        print(row(pipeline, replace(settings, speculative=True), images), flush=True)


def row(pipeline: TokenBridgePipeline, settings: SamplingSettings, images: int) -> str:
    plain = replace(settings, speculative=False)
    times: dict[bool, list[float]] = {False: [], True: []}
    passes = passes_per_token(pipeline, settings, images)  # also warms up
    milliseconds(pipeline, plain, images)
    for _ in range(ROUNDS):
        for each in (plain, settings):
            times[each.speculative].append(milliseconds(pipeline, each, images) / images)
    one, other = (statistics.median(times[speculative]) for speculative in (False, True))
    return f"| {images} | {passes:.2f} | {one:.2f} | {other:.2f} | {one / other:.2f} |"


def passes_per_token(pipeline: TokenBridgePipeline, settings: SamplingSettings, images: int) -> float:
    """Return the teacher-forced passes of the head for each token that is drawn; ``order`` must not be confidence."""
    rows: list[int] = []
    head = pipeline.transformer.head
    with head.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]))):
        milliseconds(pipeline, settings, images)
    return sum(rows) / (images * pipeline.transformer.positions)


def milliseconds(pipeline: TokenBridgePipeline, settings: SamplingSettings, images: int) -> float:
    """Return the time in which the tokens of ``images`` images are drawn."""
    model, device = pipeline.transformer, pipeline.transformer.device
    generators = [generator(0, "sample", index) for index in range(images)]
    draws = Draws.from_generators(generators, model.positions, model.config.dimensions, settings.speculative).to(device)
    labels = torch.arange(images, device=device) % model.num_classes
    start = time.perf_counter()
    sample_tokens(model, pipeline.quantizer, labels, draws, settings).cpu()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
