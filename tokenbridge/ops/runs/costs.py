"""What quality costs: studies whose tables have time, memory and operations for each image beside the quality.

Quality is that of trained models (``studies``). Times do not depend on the values of weights, so they are measured on
fresh ones: every experiment in turn, in several rounds, because other processes may use the machine too.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from timeit import timeit

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenbridge.base.device import autocast, best_device, resolve_precision
from tokenbridge.base.seeding import generator
from tokenbridge.config import LEVEL_HEADS, Config
from tokenbridge.ops.planning.flops import sample_flops
from tokenbridge.ops.planning.sizes import fresh_model, grid_side, loss_uniforms, meta_model, step_inputs
from tokenbridge.ops.planning.steps import HeldBytes, train_flops
from tokenbridge.ops.runs.pipeline_run import only_user
from tokenbridge.ops.runs.studies import Row, experiment_config, run_rows, write_results
from tokenbridge.ops.runs.study import (
    BITS,
    CELL_LOSS,
    CODED,
    METRICS,
    MODEL,
    SAMPLE_GFLOP,
    SAMPLE_MIB,
    SAMPLE_MS,
    SAMPLE_ONE_MS,
    TRAIN_GFLOP,
    TRAIN_MS,
    Study,
)
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.sampling.samples import draw_samples
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.training.batches import predicted_positions
from tokenbridge.vae.training import build_vae

logger = logging.getLogger(__name__)

ROUNDS, IMAGES = 5, 100
AXES = {  # of the picture: column of the table -> its label
    SAMPLE_MS: "sampling, ms for each image",
    TRAIN_MS: "training, ms for each image",
    CODED: "bits of an image's tokens, coded by the model",
}
MARKERS = "osD^"  # another one for every ten experiments, whose colours are those of matplotlib's cycle
GIGA = 1e9
Costs = dict[str, float]


def run_with_costs(root: Path, study: Study, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Run the rows that the table lacks, then measure the costs of all of its experiments if some have none."""
    with only_user(root, study.worktree):
        table = run_rows(root, study, names, seeds)
        if not all(row.get(SAMPLE_MS) for row in table):
            table = add_costs(root, study, table)
            write_results(root, study, table)
    pareto_figure(study, table).savefig(root / f"docs/images/{study.page_name}.png", metadata={"Software": None})


def add_costs(root: Path, study: Study, table: Sequence[Row]) -> list[Row]:
    """Return the table with the costs of every experiment."""
    configs = {row["experiment"]: experiment_config(root, study, row["experiment"]) for row in table}
    times = measure(
        configs, lambda done: logger.info(f"{study.page_name}: round {done} of {ROUNDS} of the times is measured")
    )
    costs = {name: times[name] | memory(config) | operations(config) | bits(config) for name, config in configs.items()}
    return [row | costs[row["experiment"]] | coded_bits(configs[row["experiment"]], row) for row in table]


def operations(config: Config) -> Costs:
    """Return the operations for one image, in GFLOP: of training, and of sampling without the VAE's decoder."""
    recipe, model = config.models[MODEL].train, meta_model(config, config.models[MODEL])
    return {
        TRAIN_GFLOP: train_flops(model, recipe).total / GIGA,
        SAMPLE_GFLOP: sample_flops(model, config.generate).total / GIGA,
    }


def bits(config: Config) -> Costs:
    """Return the bits of the tokens of one image, with equally many for each value; none if tokens are continuous."""
    classes = config.quantizer.classes
    return {} if classes is None else {BITS: _numbers(config) * math.log2(classes)}


def coded_bits(config: Config, row: Row) -> Costs:
    """Return the bits of the tokens of one image, coded by the model's probabilities, given the class.

    They are the validation loss in bits: masked positions are as many as by chance, so that it is a code length of
    tokens drawn one position after the other (Uria et al. 2014). Those of a mixture are of the levels of the base.
    Other heads without probabilities of levels have none.
    """
    loss = row["validation_loss"] if config.models[MODEL].head in LEVEL_HEADS else row.get(CELL_LOSS)
    return {CODED: _numbers(config) * float(loss) / math.log(2)} if loss else {}


def _numbers(config: Config) -> int:
    """Return how many numbers the tokens of one image have."""
    return grid_side(config) ** 2 * config.quantizer.slots(config.dimensions)


def memory(config: Config) -> Costs:
    """Return the peak MiB of tensors, without weights, while tokens of ``IMAGES`` images are drawn, for each image."""
    pipeline = fresh_pipeline(config)
    model, settings = pipeline.transformer, config.generate
    generators = [generator(config.seed, "sample", index) for index in range(IMAGES)]
    draws = Draws.from_generators(generators, model.units, model.head.draw_numbers, settings.speculative)
    labels = torch.zeros(IMAGES, dtype=torch.long, device=model.device)
    with HeldBytes() as held:
        sample_tokens(model, pipeline.quantizer, labels, draws.to(model.device), settings)
    return {SAMPLE_MIB: held.most / 2**20 / IMAGES}


def measure(configs: Mapping[str, Config], on_round: Callable[[int], None]) -> dict[str, Costs]:
    """Return the milliseconds of one image, in sampling and in training: medians of rounds that take turns."""
    kinds = {SAMPLE_MS: (sampling, IMAGES), SAMPLE_ONE_MS: (sampling, 1), TRAIN_MS: (training, IMAGES)}
    calls = {
        (name, what): make(config, images) for name, config in configs.items() for what, (make, images) in kinds.items()
    }
    rounds = []
    for done in range(ROUNDS + 1):
        rounds.append({key: timeit(call, number=1) for key, call in calls.items()})
        on_round(done)
    taken = {key: 1e3 * median(each[key] for each in rounds[1:]) for key in calls}  # the first round warms up
    return {name: {what: taken[name, what] / images for what, (_, images) in kinds.items()} for name in configs}


def sampling(config: Config, images: int = IMAGES) -> Callable[[], object]:
    """Return a function that draws and decodes images, as the stage ``generate`` does."""
    pipeline = fresh_pipeline(config)
    return lambda: draw_samples(pipeline, list(range(images)), config.seed, config.generate)


def fresh_pipeline(config: Config) -> TokenBridgePipeline:
    side = grid_side(config)
    random = generator("speed")
    latents = torch.randn(64, config.vae.dimensions, side, side, generator=random)
    codebook = torch.randn(config.quantizer.codewords, config.vae.dimensions, generator=random)  # as if of the VAE
    pipeline = TokenBridgePipeline(
        build_vae(config.vae, config.data.image_size).eval(),
        fresh_model(config, config.models[MODEL]).eval(),
        fit_quantizer(latents, config.quantizer, codebook),
        [str(label) for label in range(config.data.num_classes)],
    ).to(best_device())
    pipeline.precision = config.generate.precision
    return pipeline


def training(config: Config, images: int = IMAGES) -> Callable[[], object]:
    """Return a function that computes loss and gradients of images, under a mask of middling size."""
    recipe, device = config.models[MODEL].train, best_device()
    model = fresh_model(config, config.models[MODEL]).to(device).train()
    values, tokens, labels, _ = step_inputs(model, images)
    random = loss_uniforms(model, images)
    order = torch.arange(model.units, device=device).expand(images, -1)
    masked = round(model.units * (recipe.mask_ratio_min + 1) / 2)
    predicted = predicted_positions(masked, recipe.head_share)

    def step() -> None:
        with autocast(device, resolve_precision(recipe.precision, device)):
            loss = model(values, tokens, labels, order, masked, predicted, random)
        loss.backward()
        model.zero_grad()

    return step


def pareto_figure(study: Study, table: Sequence[Row]) -> Figure:
    """Draw Fréchet distance and class accuracy (rows), as means over seeds, against what the study shows of AXES."""
    shown = {column for column, _ in study.shown.values()}
    costs = [column for column in AXES if column in shown]
    figure = Figure(figsize=(5 * len(costs), 8), layout="constrained", dpi=110)
    axes = figure.subplots(2, len(costs), sharex="col", sharey="row")
    for row, (quality, label) in zip(axes, ((METRICS[0], "Fréchet distance"), ("class_accuracy",) * 2), strict=True):
        row[0].set_ylabel(label.replace("_", " "))
        for axis, cost in zip(row, costs, strict=True):
            _draw_points(axis, table, cost, quality)
    distances = axes[0, 0]
    distances.set_yscale("log")  # one poor system leaves room for the others
    distances.yaxis.set_major_formatter("{x:g}")
    distances.yaxis.set_minor_formatter("{x:g}")
    for axis, cost in zip(axes[-1], costs, strict=True):
        axis.set_xlabel(AXES[cost])
    figure.legend(*distances.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def _draw_points(axis: Axes, table: Sequence[Row], cost: str, quality: str) -> None:
    """Draw a point for each experiment that has this cost, with a line from its least to its greatest seed."""
    for number, name in enumerate(dict.fromkeys(row["experiment"] for row in table)):
        rows = [row for row in table if row["experiment"] == name and row.get(cost, "") != ""]
        if rows:
            x, values = mean(float(each[cost]) for each in rows), [float(each[quality]) for each in rows]
            color = f"C{number % 10}"
            axis.vlines(x, min(values), max(values), color, linewidth=0.8)
            axis.plot(x, mean(values), MARKERS[number // 10], color=color, markersize=7, label=name)
