"""The pictures of docs/method.md, drawn with the package's own functions: ``python docs/pictures.py``, some seconds.

They go to docs/images/. Nothing is random but one masking order, which has a seed.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor
from torch.distributions import Normal

from tokenbridge.base.seeding import generator
from tokenbridge.config import Config, QuantizerConfig, TrainConfig
from tokenbridge.config.model import GUIDANCE_SCHEDULES, SamplingSettings
from tokenbridge.config.params import compose_config, validate
from tokenbridge.model.head import DimensionHead
from tokenbridge.model.schedule import masked_counts
from tokenbridge.model.transformer import split_order
from tokenbridge.sampling.sampler import guidance_at
from tokenbridge.tokenizer.fitting import fit_quantizer, quantizer_report
from tokenbridge.tokenizer.levels import OUTER_EDGE
from tokenbridge.training.batches import num_masked_positions

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs/images"
WIDTH, DPI = 9.0, 110  # 990 pixels: a little more than a page on GitHub shows
VALUES = 200_000  # of N(0, 1), evenly spread in probability
BLUE, ORANGE, GREEN, RED, PURPLE = "#1f6f9f", "#d9822b", "#3b8f5a", "#b8403a", "#7a5ea8"
INK, GREY, PALE = "#333333", "#8c8c8c", "#e6e6e6"
BLOCKS_FILL, INPUT_FILL, OUTPUT_FILL = "#dce9f2", "#f6e6d2", "#dcefe2"


def main() -> None:
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    default, released = (validate(compose_config(choice, ROOT / "conf")) for choice in ([], ["experiment=imagenet_l"]))
    pictures = {
        "families": families_figure(default.quantizer),
        "model": model_figure(default),
        "head": head_figure(),
        "masking": masking_figure(default, released),
        "sampling": sampling_figure(released),
    }
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(IMAGES / f"{name}.png", dpi=DPI, metadata={"Software": None})
        print(IMAGES / f"{name}.png")


# ---- the quantizer's families


def normal_values() -> Tensor:
    """N(0, 1) as latents of one dimension [VALUES, 1, 1, 1], without sampling noise."""
    probabilities = (torch.arange(VALUES, dtype=torch.float64) + 0.5) / VALUES
    return torch.special.ndtri(probabilities).float().reshape(-1, 1, 1, 1)


def families(config: QuantizerConfig) -> dict[str, tuple[QuantizerConfig, str]]:
    """Name -> settings on normalised latents, and colour."""
    plain = replace(config, statistics="fixed", order="natural")
    wide, narrow = f"$\\pm${config.range:g}", f"$\\pm${OUTER_EDGE:g}"
    return {
        f"gaussian, stretched to {wide}": (replace(plain, family="gaussian"), BLUE),
        f"gaussian, {narrow}: no stretch": (replace(plain, family="gaussian", range=OUTER_EDGE), RED),
        f"uniform, {narrow}": (replace(plain, family="uniform", range=OUTER_EDGE), ORANGE),
        f"uniform, {wide}": (replace(plain, family="uniform"), PURPLE),
        "Lloyd-Max": (replace(plain, family="lloyd_max"), GREEN),
    }


def families_figure(config: QuantizerConfig) -> Figure:
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.1, 1))
    values, choices = normal_values(), families(config)
    draw_levels(figure.add_subplot(grid[0, :]), values, choices, levels=16)
    sqnr, excess = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    counts = [2**bits for bits in range(2, 9)]
    for name, (choice, colour) in choices.items():
        variants = [replace(choice, levels=levels) for levels in counts]
        rows = [quantizer_report(fit_quantizer(values, variant), values)[0] for variant in variants]
        style = "o--" if choice.family == "lloyd_max" else "o-"  # it lies on the stretched gaussian
        for axis, key in ((sqnr, "sqnr_db"), (excess, "bits_above_bound")):
            axis.plot(counts, [row[key] for row in rows], style, color=colour, markersize=3.5, label=name)
    for axis, title in ((sqnr, "signal over quantization noise, dB"), (excess, "bits above the rate-distortion bound")):
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xlabel("levels $B$")
        axis.set_title(title, fontsize=9)
        axis.grid(color=PALE)
    return figure


def draw_levels(axis: Axes, values: Tensor, choices: dict[str, tuple[QuantizerConfig, str]], levels: int) -> None:
    """The density of N(0, 1), and below it the levels of each family in a row of its own."""
    x = torch.linspace(-5.4, 5.4, 400)
    density = Normal(0.0, 1.0).log_prob(x).exp() * 6
    axis.fill_between(x.numpy(), density.numpy(), color=PALE)
    for row, (choice, colour) in enumerate(choices.values()):
        ticks = fit_quantizer(values, replace(choice, levels=levels)).levels[0].numpy()
        axis.axhline(-1 - row, color=PALE, linewidth=0.8, zorder=0)
        axis.vlines(ticks, -1.33 - row, -0.67 - row, color=colour, linewidth=2)
    axis.set_yticks([-1 - row for row in range(len(choices))], list(choices))
    for label, (_, colour) in zip(axis.get_yticklabels(), choices.values(), strict=True):
        label.set_color(colour)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_xlim(-5.4, 5.4)
    axis.set_xlabel("normalised latent")
    axis.set_title(f"{levels} levels under the density of N(0, 1)", fontsize=9)


# ---- diagrams of the model


def box(axis: Axes, x: float, y: float, width: float, height: float, text: str, fill: str, size: float = 9) -> None:
    """A rounded box with its lower left corner at (x, y)."""
    style = "round,pad=0,rounding_size=0.08"
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=INK, linewidth=0.8))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK, bend: float = 0) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"})


def diagram(axis: Axes, width: float, height: float) -> None:
    axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axis.set_axis_off()


def squares(axis: Axes, centre: tuple[float, float], fills: Sequence[str], columns: int, caption: str) -> None:
    """Row by row around ``centre``, with a caption below."""
    side, rows = 0.42, -(-len(fills) // columns)
    left, top = centre[0] - columns * side / 2, centre[1] + rows * side / 2
    for index, fill in enumerate(fills):
        row, column = divmod(index, columns)
        corner = (left + column * side, top - (row + 1) * side)
        axis.add_patch(Rectangle(corner, side, side, facecolor=fill, edgecolor="white", linewidth=1.2))
    axis.text(centre[0], 1.3, caption, ha="center", va="top", fontsize=8.5)


def model_figure(config: Config) -> Figure:
    """One training example of the default's shape, from its grid to the head."""
    positions, buffer = positions_of(config), config.models["tiny"].buffer_size
    order = torch.randperm(positions, generator=generator(0, "picture"))
    masked, visible = split_order(order[None], positions * 5 // 8)
    tokens = [PALE if position in masked else BLUE for position in range(positions)]
    features = [GREEN if position in masked else PALE for position in range(positions)]
    classes = [ORANGE] * buffer
    figure = Figure(figsize=(WIDTH, 2.15), layout="constrained")
    axis = figure.add_subplot()
    diagram(axis, 17.0, 4.0)
    squares(axis, (0.9, 2.7), tokens, round(positions**0.5), "dequantized tokens;\ngrey: masked")
    squares(axis, (4.3, 2.7), classes + [BLUE] * visible.shape[1], 5, f"{buffer} class positions\nand the visible ones")
    box(axis, 6.2, 1.9, 1.7, 1.6, "encoder", BLOCKS_FILL)
    squares(axis, (10.0, 2.7), classes + tokens, buffer, "back in place, a mask\ntoken in each gap")
    box(axis, 12.1, 1.9, 1.7, 1.6, "decoder", BLOCKS_FILL)
    squares(axis, (15.8, 2.7), features, round(positions**0.5), "features $z$ of the\nmasked, for the head")
    for start, end in ((1.95, 3.2), (5.4, 6.1), (8.0, 9.05), (10.95, 12.0), (13.9, 14.75)):
        arrow(axis, (start, 2.7), (end, 2.7))
    return figure


def head_figure() -> Figure:
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    panels = (("autoregressive", 1), ("parallel", 1), ("autoregressive", 2))
    for axis, (kind, group) in zip(figure.subplots(1, 3), panels, strict=True):
        head = DimensionHead(dimensions=4, levels=8, features=8, width=8, depth=1, heads=1, kind=kind, group=group)
        draw_head(axis, head)
    return figure


def draw_head(axis: Axes, head: DimensionHead) -> None:
    """Slots from left to right: inputs below, predictions above, chosen levels handed on."""
    diagram(axis, 5.4, 6.2)
    pitch = 5.4 / head.slots
    width = min(1.15, 0.8 * pitch) if head.slots > 2 else 1.6
    causal = "causal blocks" if head.autoregressive else "blocks"
    box(axis, 0.1, 2.5, 5.2, 0.9, f"{causal}, adaLN by $c$", BLOCKS_FILL)
    for slot in range(head.slots):
        centre = (slot + 0.5) * pitch
        before = slot_name(head, slot - 1) if slot and head.autoregressive else ""
        box(axis, centre - width / 2, 0.9, width, 0.75, f"$E({before})$" if before else "$c$", INPUT_FILL, 8.5)
        box(axis, centre - width / 2, 4.25, width, 0.75, f"${slot_name(head, slot)}$", OUTPUT_FILL)
        arrow(axis, (centre, 1.65), (centre, 2.5))
        arrow(axis, (centre, 3.4), (centre, 4.25))
        if slot and head.autoregressive:
            hand_on(axis, centre - pitch + width / 2, centre - width / 2, pitch)
        axis.text(centre, 0.45, f"slot {slot}", ha="center", fontsize=8, color=GREY)
    kind = "autoregressive" if head.autoregressive else "parallel"
    name = f"{kind}, group {head.group}" if head.group > 1 else kind
    axis.text(2.7, 5.85, name, ha="center", va="center", fontsize=10)
    axis.text(2.7, 5.35, f"{head.slots} predictions of {head.classes} classes", ha="center", va="center", fontsize=8)


def slot_name(head: DimensionHead, slot: int) -> str:
    first = slot * head.group + 1
    return ",".join(f"q_{dimension}" for dimension in range(first, first + head.group))


def hand_on(axis: Axes, right_of_last: float, left_of_next: float, pitch: float) -> None:
    """From the level chosen in one slot to the input of the next."""
    middle = (right_of_last + left_of_next) / 2
    axis.plot([right_of_last, middle, middle], [4.62, 4.62, 1.28], color=RED, linewidth=0.9, linestyle=":", zorder=0)
    arrow(axis, (middle, 1.28), (left_of_next, 1.28), RED)


# ---- masking and sampling


def positions_of(config: Config) -> int:
    return (config.data.image_size // config.stride) ** 2


def masked_shares(config: TrainConfig, parts: int) -> Tensor:
    """Probability [parts] that the masked share of a batch lies in each of so many equal parts of (0, 1]."""
    uniforms = (torch.arange(2000) + 0.5) / 2000
    counts = num_masked_positions(uniforms, parts, config)
    return counts.bincount(minlength=parts + 1)[1:] / len(counts)


def masking_figure(small: Config, released: Config) -> Figure:
    """The two recipes, and what sampling asks for."""
    parts = positions_of(small)
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axis = figure.add_subplot()
    centres = (torch.arange(parts) + 0.5) / parts
    for config, name, colour, shift in ((released, "released", ORANGE, -0.2), (small, "experiment=paper's", BLUE, 0.2)):
        recipe = config.train
        label = f"{name} recipe: mean {recipe.mask_ratio_mean:g}, std {recipe.mask_ratio_std:g}, "
        label += f"at least {recipe.mask_ratio_min:g}"
        x = (centres + shift / parts).tolist()
        axis.bar(x, masked_shares(recipe, parts).tolist(), 0.38 / parts, color=colour, label=label)
    before = [parts, *masked_counts(parts, small.generate.steps_for("masked", parts))[:-1]]
    met = torch.tensor(before).bincount(minlength=parts + 1)[1:] / len(before)
    axis.step(centres.tolist(), met.tolist(), where="mid", color=INK, linewidth=1.2, label=sampling_label(small))
    axis.set_xticks([part / parts for part in range(0, parts + 1, 2)])
    axis.set_xlabel(f"share of positions masked, in {parts} parts")
    axis.set_ylabel("share of batches, or of steps")
    axis.legend(frameon=False, loc="upper left")
    return figure


def sampling_label(config: Config) -> str:
    positions = positions_of(config)
    return f"sampling, {config.generate.steps_for('masked', positions)} steps of {positions} positions"


def sampling_figure(released: Config) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    counts, scales = figure.subplots(1, 2)
    draw_masked_counts(counts, positions_of(released), {16: PURPLE, 64: BLUE, 128: GREEN, 256: ORANGE})
    draw_guidance(scales, released)
    for axis in (counts, scales):
        axis.grid(color=PALE)
        axis.legend(frameon=False, fontsize=8)
    return figure


def draw_masked_counts(axis: Axes, positions: int, steps: dict[int, str]) -> None:
    for count, colour in steps.items():
        masked = [positions, *masked_counts(positions, count)]
        done = [step / count for step in range(count + 1)]
        style = "o" if count == min(steps) else "-"  # its line would lie on the others'
        axis.plot(done, masked, style, markersize=3.5, color=colour, label=f"{count} steps")
    axis.set_xlabel("share of the steps done")
    axis.set_title(f"positions still masked, of {positions}", fontsize=9)


def draw_guidance(axis: Axes, released: Config) -> None:
    positions = positions_of(released)
    settings = released.generate
    for schedule, colour in zip(GUIDANCE_SCHEDULES, (BLUE, ORANGE, GREEN), strict=True):
        draw_schedule(axis, replace(settings, guidance_schedule=schedule), positions, colour, "-", schedule)
    late = validate(compose_config(["experiment=ablation/guidance_late"], ROOT / "conf")).generate.guidance_interval
    name = f"{settings.guidance_schedule}, interval [{late[0]:g}, {late[1]:g})"
    draw_schedule(axis, replace(settings, guidance_interval=late), positions, INK, "--", name)
    axis.set_xlabel("share of positions revealed before the step")
    axis.set_title(f"guidance scale, {settings.guidance_scale:g} asked for", fontsize=9)


def draw_schedule(axis: Axes, settings: SamplingSettings, positions: int, colour: str, style: str, label: str) -> None:
    counts = [positions, *masked_counts(positions, settings.steps_for("masked", positions))]
    scales = [guidance_at(settings, positions, before, after) for before, after in pairwise(counts)]
    revealed = [1 - before / positions for before in counts[:-1]]
    axis.plot(revealed, scales, style, color=colour, linewidth=1.5, label=label)


if __name__ == "__main__":
    main()
