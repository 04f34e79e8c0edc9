"""The plan of one model: everything that its settings decide about cost."""

from dataclasses import asdict, dataclass
from typing import Any

from tokenbridge.base.checks import BF16, FP32, Precision
from tokenbridge.config import Config
from tokenbridge.config.operations import PlanConfig
from tokenbridge.model import AutoregressiveModel
from tokenbridge.model.head import DimensionHead
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.flops import Flops, sample_flops, vae_flops
from tokenbridge.ops.planning.memory import GIB, Memory, MemoryModel, optimizer_bytes
from tokenbridge.ops.planning.schedule import HOUR, Schedule, Work, peak_flops, schedule_of
from tokenbridge.ops.planning.sizes import Parameters, meta_model
from tokenbridge.ops.planning.steps import train_flops
from tokenbridge.ops.planning.volumes import Volumes
from tokenbridge.training.parts import check_processes


@dataclass(frozen=True)
class Plan:
    """The cost of training one model and of sampling from it."""

    name: str
    sizes: dict[str, Any]  # of the model, by the names of its arguments, and of its tokens
    cluster: Cluster
    parameters: Parameters
    train: Flops  # of one image, forward and backward
    recomputed: Flops
    sample: Flops  # of the tokens of one image
    vae_encode: float
    vae_decode: float
    at_once: int  # images on one GPU
    memory: Memory
    limit: float  # bytes of a GPU without the reserve
    largest: int  # images at once that fit
    volumes: Volumes
    schedule: Schedule
    samples: int
    sample_gpu_hours: float
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan in bytes, seconds and operations, with totals beside their parts."""
        found = asdict(self)
        found["memory"]["states"] = self.memory.states
        found["schedule"]["step"]["total"] = self.schedule.step.total
        for part in ("memory", "parameters", "train", "recomputed", "sample"):
            found[part]["total"] = getattr(self, part).total
        return found


def planned_precision(setting: Precision) -> Precision:
    """Return bf16 or fp32; ``auto`` is bf16, because every GPU that conf/plan describes has it in hardware."""
    return FP32 if setting == FP32 else BF16


def sampling_seconds(config: Config, operations: float) -> float:
    """Return the time of one GPU for so many operations of drawing and decoding, in ``generate.precision``."""
    return operations / (peak_flops(config.plan, planned_precision(config.generate.precision)) * config.plan.mfu)


def memory_limit(plan: PlanConfig) -> float:
    """Return the bytes of a GPU that a training may use."""
    return plan.gpu.memory * GIB * (1 - plan.reserve)


def memory_model(config: Config, name: str) -> MemoryModel:
    recipe = config.models[name].train
    model = meta_model(config, config.models[name])
    return MemoryModel(
        model=model,
        parameters=Parameters.of(model),
        optimizer=optimizer_bytes(model, recipe),
        precision=planned_precision(recipe.precision),
        cluster=Cluster.of(config.launcher, recipe),
        recipe=recipe,
    )


def work_of(memory: MemoryModel) -> Work:
    needed, executed = (train_flops(memory.model, memory.recipe, each) for each in (False, True))
    return Work(needed, executed - needed, memory.parameters.total)


def plan_model(config: Config, name: str) -> Plan:
    """Return the plan of ``config.models[name]``.

    Raises:
        ConfigError: if settings do not fit together, or the size of the data set is unknown.
    """
    recipe, launcher = config.models[name].train, config.launcher
    check_processes(recipe, launcher, launcher.nodes * launcher.processes)
    memory = memory_model(config, name)
    cluster, model = memory.cluster, memory.model
    at_once = cluster.images_at_once(recipe.batch_size)
    work = work_of(memory)
    volumes = Volumes.of(config, memory.parameters.total, memory.optimizer)
    sample = sample_flops(model, config.generate)
    encode, decode = vae_flops(config)
    limit = memory_limit(config.plan)
    return Plan(
        name=name,
        sizes=model_sizes(model),
        cluster=cluster,
        parameters=memory.parameters,
        train=work.needed,
        recomputed=work.recomputed,
        sample=sample,
        vae_encode=encode,
        vae_decode=decode,
        at_once=at_once,
        memory=memory.at(at_once),
        limit=limit,
        largest=memory.largest(limit),
        volumes=volumes,
        schedule=schedule_of(work, recipe, cluster, config.plan, memory.precision, volumes),
        samples=config.generate.samples,
        sample_gpu_hours=sampling_seconds(config, config.generate.samples * (sample.total + decode)) / HOUR,
        warnings=[*fit_warnings(memory, at_once, limit), *setting_warnings(config, name, cluster)],
    )


def model_sizes(model: AutoregressiveModel) -> dict[str, Any]:
    arguments = {name: value for name, value in model.config.items() if not name.startswith("_")}
    if isinstance(model.head, DimensionHead):
        arguments |= {"slots": model.head.slots, "classes": model.head.classes}
    return arguments | {"trunk": model.trunk, "positions": model.positions, "units": model.units}


def fit_warnings(memory: MemoryModel, at_once: int, limit: float) -> list[str]:
    """Return what to change if the images at once do not fit: smaller parts, or settings that let larger ones fit."""
    if memory.at(at_once).total <= limit:
        return []
    checkpoint, shard = "launcher.checkpoint_activations=true", "launcher.strategy=fsdp"
    remedies = {"": memory, checkpoint: memory.changed(checkpointed=True), shard: memory.changed(sharded=True)}
    remedies[f"{checkpoint} {shard}"] = memory.changed(checkpointed=True, sharded=True)
    images = at_once * memory.cluster.accumulation
    parts = {text: fewest for text, changed in remedies.items() if (fewest := changed.parts(images, limit))}
    helping = [
        " ".join([text, *([f"launcher.accumulation={count}"] if count > 1 else [])]).strip()
        for text, count in parts.items()
        if text in ("", checkpoint) or count < min(parts[name] for name in parts if name != text)
    ]
    need = f"{memory.at(at_once).total / GIB:.0f} GiB for {at_once} images at once, {limit / GIB:.0f} GiB are there"
    advice = f"say {', or '.join(helping)}" if helping else "use more GPUs, or larger ones"
    return [f"does not fit: {need}; {advice}"]


def setting_warnings(config: Config, name: str, cluster: Cluster) -> list[str]:
    recipe, found = config.models[name].train, []
    if recipe.batch_size % (cluster.gpus * cluster.accumulation):
        found.append(f"train.batch_size {recipe.batch_size} does not divide into {cluster.gpus} GPUs evenly")
    if cluster.sharded and cluster.gpus == 1:
        found.append("launcher.strategy=fsdp shards nothing on one GPU")
    if config.vae.pretrained is not None:
        found.append(f"{config.vae.pretrained} is taken for a KL-16 of vae.block_widths: its files were not read")
    if config.models[name].pretrained is not None:
        found.append(f"models.{name}.pretrained is set: it would not be trained at all")
    return found
