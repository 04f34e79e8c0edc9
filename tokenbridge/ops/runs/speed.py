"""What faster settings cost: quality of conf/experiment/speed, and time for each image, side by side.

Quality is that of trained models (``studies``). Times do not depend on the values of weights, so they are measured on
fresh ones: every experiment in turn, in several rounds, because other processes may use the machine too.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from matplotlib.figure import Figure

from tokenbridge.base.device import autocast, best_device, resolve_precision
from tokenbridge.base.seeding import generator
from tokenbridge.config import Config
from tokenbridge.config.params import compose_config, validate
from tokenbridge.ops.planning.sizes import fresh_model, grid_side, step_inputs
from tokenbridge.ops.runs.studies import METRICS, MODEL, SHOWN, Row, Study, run_study, write_results
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.sampling.samples import draw_samples
from tokenbridge.tokenizer.quantizer import fit_quantizer
from tokenbridge.training.batches import predicted_positions
from tokenbridge.vae.training import build_vae

logger = logging.getLogger(__name__)

SAMPLE_MS, TRAIN_MS = "sample_ms", "train_ms"  # of one image
SPEED = Study(
    "speed",
    "speed",
    {name: SHOWN[name] for name in ("seeds", "validation loss", "Fréchet distance", "class accuracy")}
    | {"sampling, ms": (SAMPLE_MS, 1), "training, ms": (TRAIN_MS, 2)},
)
PICTURE = Path("docs/images/pareto.png")
ROUNDS, IMAGES = 5, 20
Times = dict[str, float]


def run_speed(root: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Run the rows that the table lacks, then measure the times of all of its experiments if some have none."""
    table = run_study(root, SPEED, names, seeds)
    found = list(dict.fromkeys(row["experiment"] for row in table))
    if not all(row.get(SAMPLE_MS) for row in table):
        configs = {name: _composed(root, name) for name in found}
        times = measure(configs, lambda done: logger.info(f"speed: round {done} of {ROUNDS} of the times is measured"))
        table = [row | times[row["experiment"]] for row in table]
        write_results(root, SPEED, table)
    pareto_figure(table).savefig(root / PICTURE, metadata={"Software": None})


def _composed(root: Path, name: str) -> Config:
    return validate(compose_config([f"experiment={SPEED.name}/{name}", f"model={MODEL}"], root / "conf"))


def measure(configs: Mapping[str, Config], on_round: Callable[[int], None]) -> dict[str, Times]:
    """Return the milliseconds of one image, in sampling and in training: medians of rounds that take turns."""
    calls = {
        (name, what): call
        for name, config in configs.items()
        for what, call in ((SAMPLE_MS, sampling(config)), (TRAIN_MS, training(config)))
    }
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for done in range(ROUNDS + 1):
        for key, call in calls.items():
            start = perf_counter()
            call()
            if done:  # the first round warms up
                taken[key].append(perf_counter() - start)
        on_round(done)
    return {
        name: {what: 1e3 * median(taken[name, what]) / IMAGES for what in (SAMPLE_MS, TRAIN_MS)} for name in configs
    }


def sampling(config: Config) -> Callable[[], object]:
    """Return a function that draws and decodes ``IMAGES`` images, as the stage ``generate`` does."""
    side, device = grid_side(config), best_device()
    latents = torch.randn(64, config.vae.dimensions, side, side, generator=generator("speed"))
    pipeline = TokenBridgePipeline(
        build_vae(config.vae, config.data.image_size).eval(),
        fresh_model(config, config.models[MODEL]).eval(),
        fit_quantizer(latents, config.quantizer),
        [str(label) for label in range(config.data.num_classes)],
    ).to(device)
    pipeline.precision = config.generate.precision
    return lambda: draw_samples(pipeline, list(range(IMAGES)), config.seed, config.generate)


def training(config: Config) -> Callable[[], object]:
    """Return a function that computes loss and gradients of ``IMAGES`` images, under a mask of middling size."""
    recipe, device = config.models[MODEL].train, best_device()
    model = fresh_model(config, config.models[MODEL]).to(device).train()
    values, tokens, labels, _ = step_inputs(model, IMAGES)
    order = torch.arange(model.positions, device=device).expand(IMAGES, -1)
    masked = round(model.positions * (recipe.mask_ratio_min + 1) / 2)
    predicted = predicted_positions(masked, recipe.head_share)

    def step() -> None:
        with autocast(device, resolve_precision(recipe.precision, device)):
            loss = model(values, tokens, labels, order, masked, predicted)
        loss.backward()
        model.zero_grad()

    return step


def pareto_figure(table: Sequence[Row]) -> Figure:
    """Draw Fréchet distance and class accuracy (rows), as means over seeds, against both times (columns)."""
    figure = Figure(figsize=(10, 8), layout="constrained", dpi=110)
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    names = list(dict.fromkeys(row["experiment"] for row in table))
    for row, (quality, label) in zip(axes, ((METRICS[0], "Fréchet distance"), ("class_accuracy",) * 2), strict=True):
        row[0].set_ylabel(label.replace("_", " "))
        for axis, cost in zip(row, (SAMPLE_MS, TRAIN_MS), strict=True):
            for name in names:
                rows = [each for each in table if each["experiment"] == name]
                x, values = float(rows[0][cost]), [float(each[quality]) for each in rows]
                mean = sum(values) / len(values)
                axis.vlines(x, min(values), max(values), linewidth=0.8)
                axis.plot(x, mean, "o", color="#c0392b" if name == names[0] else "#1f6f9f")
                axis.annotate(name, (x, mean), xytext=(4, 4), textcoords="offset points", fontsize=7)
    for axis, label in zip(axes[-1], ("sampling, ms for each image", "training, ms for each image"), strict=True):
        axis.set_xlabel(label)
    return figure
