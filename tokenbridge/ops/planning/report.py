"""A plan as text for a terminal."""

from tokenbridge.config import Config
from tokenbridge.ops.planning.flops import Flops
from tokenbridge.ops.planning.memory import GIB
from tokenbridge.ops.planning.plan import Plan, planned_precision
from tokenbridge.ops.planning.schedule import HOUR

Line = tuple[str, str]
UNITS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def scaled(value: float, unit: str) -> str:
    """Format a value with three figures and a decimal prefix: 2.19 TFLOP."""
    size, prefix = next((each for each in UNITS if abs(value) >= each[0]), UNITS[-1])
    return f"{value / size:.3g} {prefix}{unit}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < HOUR:
        return f"{seconds:.3g} s"
    return f"{seconds / HOUR:,.1f} h" if seconds < 48 * HOUR else f"{seconds / HOUR / 24:,.1f} days"


def report(plan: Plan, config: Config) -> str:
    """Format the plan as sections of aligned lines."""
    sections = {
        f"model {plan.name}": model_lines(plan),
        "data": data_lines(plan),
        "training": training_lines(plan, config),
        f"memory of one GPU, {plan.at_once} images at once": memory_lines(plan),
        "throughput and cost": cost_lines(plan, config),
        "sampling": sampling_lines(plan, config),
    }
    lines = []
    for title, named in sections.items():
        lines += [title, *(f"  {name:<22}{value}" for name, value in named)]
    return "\n".join([*lines, *(f"! {warning}" for warning in plan.warnings)])


def parts(flops: Flops) -> str:
    named = ((name, getattr(flops, name)) for name in ("encoder", "decoder", "head"))
    return ", ".join(f"{name} {value / flops.total:.0%}" for name, value in named)


def model_lines(plan: Plan) -> list[Line]:
    found = plan.parameters
    shares = f"encoder {found.encoder:,}, decoder {found.decoder:,}, head {found.head:,}, rest {found.rest:,}"
    predictions = "{slots} x {classes} classes" if "classes" in plan.sizes else "{dimensions} numbers"
    tokens = f"{{units}} predictions of {predictions}".format_map(plan.sizes)
    return [
        ("parameters", f"{found.total:,}"),
        ("", shares),
        ("an image", tokens),
        ("to train on it", f"{scaled(plan.train.total, 'FLOP')}: {parts(plan.train)}"),
    ]


def data_lines(plan: Plan) -> list[Line]:
    volumes = plan.volumes
    lines = [("images", f"{volumes.images:,}"), ("moments", scaled(volumes.moments, "B"))]
    if volumes.tokens:
        lines.append(("tokens", scaled(volumes.tokens, "B")))
    lines.append(("VAE, encoding once", f"{scaled(plan.vae_encode, 'FLOP')} an image"))
    return lines


def training_lines(plan: Plan, config: Config) -> list[Line]:
    recipe, cluster = config.models[plan.name].train, plan.cluster
    place = f"{cluster.nodes} x {cluster.gpus_per_node} {config.plan.gpu.name}"
    ways = ["fsdp" if cluster.sharded else "ddp", planned_precision(recipe.precision)]
    ways += ["activations checkpointed"] if cluster.checkpointed else []
    ways += [f"{cluster.accumulation} parts"] if cluster.accumulation > 1 else []
    return [
        ("on", f"{place}: {', '.join(ways)}"),
        ("steps", f"{plan.schedule.steps:,} of {recipe.batch_size:,} images, {recipe.epochs:g} epochs"),
        ("in all", scaled(plan.train.total * recipe.batch_size * plan.schedule.steps, "FLOP")),
    ]


def gib(size: float) -> str:
    return f"{size / GIB:8.2f} GiB"


def memory_lines(plan: Plan) -> list[Line]:
    memory, kept = plan.memory, plan.memory.activations
    sizes = [
        ("weights", memory.weights),
        ("gradients" if memory.early else "gradients, afterwards", memory.gradients),
        ("optimizer", memory.optimizer),
        ("averaged weights", memory.average),
        ("copies of weights", memory.copies),
        ("buckets", memory.buckets),
        ("activations: encoder", kept.encoder),
        ("activations: decoder", kept.decoder),
        ("activations: head", kept.head),
        ("backward at its peak", kept.working),
        ("attention's scratch", memory.scratch),
    ]
    together = f"{gib(memory.total)} of {plan.limit / GIB:.1f} GiB"
    batch = plan.largest * plan.cluster.gpus * plan.cluster.accumulation
    fits = f"{plan.largest:,} images at once, a batch of {batch:,}" if plan.largest else "not even one image"
    return [*((name, gib(size)) for name, size in sizes), ("together", together), ("what fits", fits)]


def cost_lines(plan: Plan, config: Config) -> list[Line]:
    schedule, step, settings = plan.schedule, plan.schedule.step, config.plan
    spent = f"compute {duration(step.compute)}, waiting {duration(step.waiting)}, update {duration(step.update)}"
    gradients = f"{scaled(step.exchanged, 'B')} a step and GPU, {duration(step.exchange)}"
    share = config.launcher.checkpoint_share
    written = f"{scaled(plan.volumes.checkpoint, 'B')}, written in {duration(schedule.checkpoint)} beside the training"
    checkpoint = f"{written}, which stands still for {share:.1%} of the time at most"
    return [
        ("a step", f"{duration(step.total)}: {spent}"),
        ("exchange", f"{gradients}, hidden from {step.bandwidth:.3g} GB/s on"),
        ("images", f"{schedule.images_per_second:,.0f} a second, {scaled(schedule.read, 'B')}/s read"),
        ("checkpoint", checkpoint),
        ("time", duration(schedule.hours * HOUR)),
        ("GPU-hours", f"{schedule.gpu_hours:,.0f} at {settings.mfu:.0%} of the peak while computing"),
        ("MFU", f"{schedule.mfu:.1%}, of what the model needs, over all the time"),
        ("cost", f"{schedule.cost:,.0f} {settings.currency} at {settings.gpu.price:g} an hour"),
    ]


def sampling_lines(plan: Plan, config: Config) -> list[Line]:
    settings = config.generate
    steps = settings.steps_for(plan.sizes["trunk"], plan.sizes["units"])
    hours = f"{plan.sample_gpu_hours:,.2f} GPU-hours in {planned_precision(settings.precision)}, if batches are large"
    return [
        ("an image", f"{scaled(plan.sample.total, 'FLOP')} in {steps} steps: {parts(plan.sample)}"),
        ("VAE, decoding", scaled(plan.vae_decode, "FLOP")),
        (f"{plan.samples:,} samples", hours),
    ]
