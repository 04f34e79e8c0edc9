"""The plan of one model: everything that its settings decide about cost."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from tokenbridge.base.checks import BF16, FP32
from tokenbridge.config import Config, TrainConfig
from tokenbridge.config.operations import PlanConfig
from tokenbridge.ops.planning.activations import Numerics
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.flops import Flops, recomputed_flops, sample_flops, train_flops, vae_flops
from tokenbridge.ops.planning.memory import GIB, Memory, MemoryModel, optimizer_bytes
from tokenbridge.ops.planning.schedule import HOUR, Schedule, Work, peak_flops, schedule_of
from tokenbridge.ops.planning.sizes import Parameters, Sizes, meta_model
from tokenbridge.ops.planning.volumes import Volumes


@dataclass(frozen=True)
class Plan:
    """The cost of training one model and of sampling from it."""

    name: str
    sizes: Sizes
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
        totals = {"states": self.memory.states, "total": self.memory.total}
        found = asdict(self)
        found["memory"] |= totals
        found["parameters"]["total"] = self.parameters.total
        found["schedule"]["step"]["total"] = self.schedule.step.total
        for part in ("train", "recomputed", "sample"):
            found[part]["total"] = getattr(self, part).total
        return found


def planned_precision(recipe: TrainConfig) -> str:
    """Return bf16 or fp32; ``auto`` is bf16, because every GPU that conf/plan describes has it in hardware."""
    return FP32 if recipe.precision == FP32 else BF16


def memory_limit(plan: PlanConfig) -> float:
    """Return the bytes of a GPU that a training may use."""
    return plan.gpu.memory * GIB * (1 - plan.reserve)


def memory_model(config: Config, name: str) -> MemoryModel:
    model = config.models[name]
    skeleton, sizes = meta_model(config, model), Sizes.of(config, model)
    return MemoryModel(
        sizes=sizes,
        parameters=Parameters.of(skeleton),
        optimizer=optimizer_bytes(skeleton, model.train),
        numerics=Numerics(bf16=planned_precision(model.train) == BF16, fused=True),
        cluster=Cluster.of(config.launcher),
        masked=(math.ceil(sizes.positions * model.train.mask_ratio_min), sizes.positions),
    )


def work_of(config: Config, name: str, parameters: Parameters) -> Work:
    recipe, sizes = config.models[name].train, Sizes.of(config, config.models[name])
    return Work(train_flops(sizes, recipe), recomputed_flops(sizes, recipe), parameters.total)


def plan_model(config: Config, name: str) -> Plan:
    """Return the plan of ``config.models[name]``.

    Raises:
        ConfigError: if settings do not fit together, or the size of the data set is unknown.
    """
    memory, recipe = memory_model(config, name), config.models[name].train
    cluster, numerics = memory.cluster, memory.numerics
    at_once = cluster.images_at_once(recipe.batch_size)
    work = work_of(config, name, memory.parameters)
    volumes = Volumes.of(config, memory.parameters.total, memory.optimizer)
    sample = sample_flops(memory.sizes, config.generate)
    encode, decode = vae_flops(config)
    limit = memory_limit(config.plan)
    speed = peak_flops(config.plan, numerics) * config.plan.mfu
    return Plan(
        name=name,
        sizes=memory.sizes,
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
        schedule=schedule_of(work, recipe, cluster, config.plan, numerics, volumes),
        samples=config.generate.samples,
        sample_gpu_hours=config.generate.samples * (sample.total + decode) / speed / HOUR,
        warnings=[*fit_warnings(memory, at_once, limit), *setting_warnings(config, name, cluster)],
    )


def fit_warnings(memory: MemoryModel, at_once: int, limit: float) -> list[str]:
    """Return what to change if the images at once do not fit: smaller parts, or settings that let larger ones fit."""
    if memory.at(at_once).total <= limit:
        return []
    checkpoint, shard = "launcher.checkpoint_activations=true", "launcher.strategy=fsdp"
    remedies = {"": memory, checkpoint: memory.checkpointing(), shard: memory.sharding()}
    remedies[f"{checkpoint} {shard}"] = memory.checkpointing().sharding()
    parts = {}
    for text, changed in remedies.items():
        if fewest := changed.parts(at_once * memory.cluster.accumulation, limit):
            parts[text] = fewest
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
        found.append(f"{config.vae.pretrained} is taken for a KL-16 of vae.block_widths: nobody looked into it")
    if config.models[name].pretrained is not None:
        found.append(f"models.{name}.pretrained is set: it would not be trained at all")
    return found
