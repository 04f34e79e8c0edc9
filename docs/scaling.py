"""The tables and the picture of docs/scaling.md: ``python docs/scaling.py``, some twenty seconds, no GPU.

The words around the tables are written by hand and stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenbridge.base.checks import BF16, FP32
from tokenbridge.base.files import atomic_write_text
from tokenbridge.config import Config, TrainConfig
from tokenbridge.config.operations import PlanConfig
from tokenbridge.config.params import compose_config, validate
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.flops import sample_flops, vae_flops
from tokenbridge.ops.planning.memory import GIB, MemoryModel
from tokenbridge.ops.planning.plan import memory_limit, memory_model, sampling_seconds, work_of
from tokenbridge.ops.planning.report import duration, scaled
from tokenbridge.ops.planning.roofline import seconds, step_kernels
from tokenbridge.ops.planning.schedule import HOUR, Schedule, Work, peak_flops, schedule_of
from tokenbridge.ops.planning.steps import masked_draws
from tokenbridge.ops.planning.volumes import Volumes

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs/scaling.md", ROOT / "docs/images/scaling.png"
EXPERIMENTS = {"large": "imagenet_l", "huge": "imagenet_h"}
GPUS = [2**power for power in range(10)]
PER_NODE, AT_ONCE = 8, 64
CHECKPOINT_SECONDS = 600  # between two
ETHERNET = 12.5  # GB/s: one card of 100 Gb/s a node
H100_GPUS = [8, 64, 256, 512]
LOWER_MFU = 0.15  # beside conf/plan/h100.yaml's, which is a hope
EVALUATED = 50_000  # samples of an FID
PUBLISHED_HOURS = 6000  # of L at 400 epochs on A100, by the paper's authors (issue 4 of their repository)
WIDTH, DPI = 9.0, 110
COLOURS = {"large": "#1f6f9f", "huge": "#d9822b"}
INK, PALE = "#333333", "#e6e6e6"


@dataclass(frozen=True)
class Case:
    """One model, and what its plans share."""

    name: str
    config: Config
    memory: MemoryModel
    work: Work
    volumes: Volumes

    @classmethod
    def of(cls, name: str) -> "Case":
        config = composed(name)
        memory = memory_model(config, name)
        return cls(name, config, memory, work_of(memory), Volumes.of(config, memory.parameters.total, memory.optimizer))

    @property
    def recipe(self) -> TrainConfig:
        return self.config.models[self.name].train

    def cluster(self, gpus: int, sharded: bool) -> Cluster:
        """Checkpointed, in as few parts as fit."""
        place = Cluster(-(-gpus // PER_NODE), min(gpus, PER_NODE), sharded, accumulation=1, checkpointed=True)
        memory, images = replace(self.memory, cluster=place), place.images_at_once(self.recipe.batch_size)
        return replace(place, accumulation=memory.parts(images, memory_limit(self.config.plan)))

    def schedule(self, cluster: Cluster, plan: PlanConfig | None = None) -> Schedule:
        plan = plan or self.config.plan
        return schedule_of(self.work, self.recipe, cluster, plan, self.memory.precision, self.volumes)


def composed(name: str, *overrides: str) -> Config:
    return validate(compose_config([f"experiment={EXPERIMENTS[name]}", *overrides], ROOT / "conf"))


def main() -> None:
    cases = [Case.of(name) for name in EXPERIMENTS]
    atomic_write_text(PAGE, page(cases))
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        scaling_figure(cases).savefig(PICTURE, dpi=DPI, metadata={"Software": None})
    print(f"{PAGE}\n{PICTURE}")


def page(cases: Sequence[Case]) -> str:
    """The page as it is, with the tables that the plans give now."""
    tables = {
        "models": models_table(cases),
        "memory": memory_table(cases),
        "gpus large": gpus_table(cases[0]),
        "gpus huge": gpus_table(cases[1]),
        "h100": h100_table([replace(case, config=composed(case.name, "plan=h100")) for case in cases]),
        "roofline": roofline_table(cases),
        "published": published_table(cases[0]),
        "gap": gap_table(cases[0]),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = filled(text, name, table)
    return text


def filled(text: str, name: str, table: str) -> str:
    """``text`` with the table between the marks of ``name``."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def models_table(cases: Sequence[Case]) -> str:
    encode, decode = vae_flops(cases[0].config)
    header = ("model", "parameters", "to train on an image", "encoder, decoder, head", "again if checkpointed")
    rows = []
    for case in cases:
        needed = case.work.needed
        shares = ", ".join(f"{part / needed.total:.0%}" for part in (needed.encoder, needed.decoder, needed.head))
        again = f"{case.work.recomputed.total / needed.total:.0%}"
        sampled = sample_flops(case.memory.model, case.config.generate).total
        steps = f"{scaled(sampled, 'FLOP')} in {case.config.generate.steps} steps"
        parameters = f"{case.memory.parameters.total:,}"
        rows.append((case.name, parameters, scaled(needed.total, "FLOP"), shares, again, steps))
    vae = ("KL-16", "", "", "", "", f"{scaled(encode, 'FLOP')} to encode, {scaled(decode, 'FLOP')} to decode")
    return table_of((*header, "to sample one"), [*rows, vae])


def memory_table(cases: Sequence[Case]) -> str:
    header = ("model", "on", "activations", "states", f"{AT_ONCE} images at once", "most that fit")
    rows = []
    for case in cases:
        for sharded in (False, True):
            for checkpointed in (False, True):
                place = Cluster(4, PER_NODE, sharded, accumulation=1, checkpointed=checkpointed)
                memory = replace(case.memory, cluster=place)
                held = memory.at(AT_ONCE)
                way = "fsdp" if sharded else "ddp"
                kept = "checkpointed" if checkpointed else "kept"
                sizes = [f"{size / GIB:.1f} GiB" for size in (held.states, held.total)]
                rows.append((case.name, way, kept, *sizes, str(memory.largest(memory_limit(case.config.plan)))))
    return table_of(header, rows)


def gpus_table(case: Case) -> str:
    header = ["GPUs", "parts", "step", "images/s", "time", "GPU-hours", "exchange: a GPU sends, takes", "hidden from"]
    header += ["waits at 12.5 GB/s", "training data read", "a checkpoint each 10 minutes"]
    slow = replace(case.config.plan, network=ETHERNET)
    rows = []
    for gpus in GPUS:
        cluster = case.cluster(gpus, sharded=False)
        found, on_ethernet = case.schedule(cluster), case.schedule(cluster, slow)
        step = found.step
        exchange = f"{scaled(step.exchanged, 'B')}, {duration(step.exchange)}" if gpus > 1 else "-"
        row = [str(gpus), str(cluster.accumulation), duration(step.total), f"{found.images_per_second:,.0f}"]
        hidden = f"{step.bandwidth:.3g} GB/s" if gpus > 1 else "-"
        row += [duration(found.hours * HOUR), f"{found.gpu_hours:,.0f}", exchange, hidden]
        row += [duration(on_ethernet.step.waiting), f"{scaled(found.read, 'B')}/s"]
        rows.append([*row, f"{found.checkpoint / (found.checkpoint + CHECKPOINT_SECONDS):.2%}"])
    return table_of(header, rows)


def h100_table(cases: Sequence[Case]) -> str:
    header = ["model", "GPUs", "parts", "step", "images/s", "time", "GPU-hours", "cost", "MFU"]
    header += ["gradients travel", "of a step", "hidden from", f"GPU-hours at {LOWER_MFU:.0%} of the peak"]
    rows = []
    for case in cases:
        plan = case.config.plan
        for gpus in H100_GPUS:
            cluster = case.cluster(gpus, sharded=False)
            found, lower = case.schedule(cluster), case.schedule(cluster, replace(plan, mfu=LOWER_MFU))
            step = found.step
            row = [case.name, str(gpus), str(cluster.accumulation), duration(step.total)]
            row += [f"{found.images_per_second:,.0f}", duration(found.hours * HOUR), f"{found.gpu_hours:,.0f}"]
            row += [f"{found.cost:,.0f} {plan.currency}", f"{found.mfu:.1%}", duration(step.exchange)]
            row += [f"{step.exchange / step.total:.1%}", f"{step.bandwidth:.3g} GB/s", f"{lower.gpu_hours:,.0f}"]
            rows.append(row)
    return table_of(header, rows)


def roofline_table(cases: Sequence[Case]) -> str:
    """The least time of a step of ``AT_ONCE`` images, and the share of the peak rate that it allows."""
    header = (
        "model",
        "GPU",
        "part",
        "operations",
        "moved",
        "products alone",
        "least time",
        "share of the peak, at most",
    )
    rows = []
    for case in cases:
        masked = round(mean(masked_draws(case.memory.model, case.recipe)))
        parts = step_kernels(case.memory.model.train(), BF16, AT_ONCE, masked)
        parts["all"] = [kernel for kernels in parts.values() for kernel in kernels]
        for plan in (case.config.plan, composed(case.name, "plan=h100").plan):
            for part, kernels in parts.items():
                flops, moved = (sum(getattr(kernel, what) for kernel in kernels) for what in ("flops", "moved"))
                least, at_peak = seconds(kernels, plan, BF16), flops / peak_flops(plan, BF16)
                sizes = (scaled(flops, "FLOP"), scaled(moved, "B"), duration(at_peak), duration(least))
                rows.append((case.name, plan.gpu.name, part, *sizes, f"{at_peak / least:.0%}"))
    return table_of(header, rows)


def published_table(case: Case) -> str:
    """What the published hours say about the share of the peak."""
    cluster = case.cluster(32, sharded=False)
    rows = []
    for mfu in (0.2, case.config.plan.mfu, 0.3, 0.4):
        found = case.schedule(cluster, replace(case.config.plan, mfu=mfu))
        rows.append((f"{mfu:.0%}", f"{found.gpu_hours:,.0f}", f"{found.mfu:.1%}"))
    work, peak = case.work, case.config.plan.gpu.bf16_tflops * 1e12
    seconds = PUBLISHED_HOURS * HOUR
    images = case.schedule(cluster).steps * case.recipe.batch_size
    executed = images * (work.needed.total + work.recomputed.total) / peak / seconds
    needed = images * work.needed.total / peak / seconds
    rows.append((f"{executed:.1%}, follows", f"**{PUBLISHED_HOURS:,}, published**", f"{needed:.1%}, follows"))
    return table_of(("share of the peak while computing", "A100-hours", "MFU"), rows)


def gap_table(case: Case) -> str:
    """What would lie between the plan and the published hours, if it was done."""
    plan, found = case.config.plan, case.schedule(case.cluster(32, sharded=False))
    images, (encode, decode) = found.steps * case.recipe.batch_size, vae_flops(case.config)
    bf16, fp32 = (plan.mfu * HOUR * peak_flops(plan, precision) for precision in (BF16, FP32))
    sampled = EVALUATED * (sample_flops(case.memory.model, case.config.generate).total + decode)
    evaluation = sampling_seconds(case.config, sampled) / HOUR
    share = found.checkpoint / (found.checkpoint + CHECKPOINT_SECONDS)
    hours = {
        "the gap": PUBLISHED_HOURS - found.gpu_hours,
        "the VAE's encoder on every image of every step, in bf16": images * encode / bf16,
        "the same in float32, without TF32": images * encode / fp32,
        f"one evaluation: {EVALUATED:,} samples of {case.config.generate.steps} steps": evaluation,
        "a checkpoint each 10 minutes": found.gpu_hours * share,
    }
    return table_of(("what", "A100-hours"), [(name, f"{value:,.0f}") for name, value in hours.items()])


def scaling_figure(cases: Sequence[Case]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    days, bandwidths = figure.subplots(1, 2)
    for case in cases:
        draw_days(days, case)
        draw_bandwidths(bandwidths, case)
    plan = cases[0].config.plan
    for value, name in ((plan.network, "8 cards of 200 Gb/s"), (ETHERNET, "one card of 100 Gb/s")):
        bandwidths.axhline(value, color=INK, linewidth=0.8, linestyle=":")
        bandwidths.text(GPUS[1], value * 1.1, f"a node's network: {name}", fontsize=7.5, color=INK)
    days.set_title("days of training", fontsize=9)
    bandwidths.set_title("GB/s at which the exchange is hidden", fontsize=9)
    for axis in (days, bandwidths):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
        axis.set_xlabel(f"GPUs ({plan.gpu.name}), {PER_NODE} a node")
        axis.grid(color=PALE)
        axis.legend(frameon=False, fontsize=8)
    return figure


def draw_days(axis: Axes, case: Case) -> None:
    slow = replace(case.config.plan, network=ETHERNET)
    for plan, style, name in ((case.config.plan, "o-", "DGX"), (slow, "x--", f"{ETHERNET:g} GB/s between nodes")):
        hours = [case.schedule(case.cluster(gpus, sharded=False), plan).hours for gpus in GPUS]
        label = f"{case.name}, ddp, {name}"
        axis.plot(GPUS, [value / 24 for value in hours], style, markersize=4, color=COLOURS[case.name], label=label)


def draw_bandwidths(axis: Axes, case: Case) -> None:
    for sharded, style in ((False, "o-"), (True, "x--")):
        steps = [case.schedule(case.cluster(gpus, sharded)).step for gpus in GPUS[1:]]
        label = f"{case.name}, {'fsdp' if sharded else 'ddp'}"
        needed = [step.bandwidth for step in steps]
        axis.plot(GPUS[1:], needed, style, markersize=4, color=COLOURS[case.name], label=label)


if __name__ == "__main__":
    main()
