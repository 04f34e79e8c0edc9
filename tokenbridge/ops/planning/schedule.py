"""The seconds of a training step, and the time and cost of the whole training.

A step computes, exchanges gradients and updates the weights. Gradients are sent while the backward still computes, and
the step waits for the rest. Bandwidths are the hardware's figures. A real network reaches about four fifths of them.
"""

from dataclasses import dataclass

from tokenbridge.base.checks import BF16
from tokenbridge.base.device import DTYPES
from tokenbridge.base.seeding import EpochOrder
from tokenbridge.config import TrainConfig
from tokenbridge.config.operations import PlanConfig
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.flops import Flops
from tokenbridge.ops.planning.sizes import FULL
from tokenbridge.ops.planning.volumes import Volumes

GIGA, TERA, HOUR = 1e9, 1e12, 3600
UPDATE_PASSES = 13  # passes over the weights: clipping 3, AdamW 7, averaging 3


@dataclass(frozen=True)
class Work:
    """The operations for one image, and the parameters to update in one step."""

    needed: Flops  # forward and backward of an image
    recomputed: Flops  # what checkpointing adds
    parameters: int


@dataclass(frozen=True)
class Step:
    """The parts of one training step, in seconds unless noted."""

    compute: float
    exchange: float
    waiting: float  # for the part of the exchange that computation does not hide
    update: float
    exchanged: float  # bytes that each GPU sends
    bandwidth: float  # GB/s from which computation hides the whole exchange

    @property
    def total(self) -> float:
        return self.compute + self.waiting + self.update


@dataclass(frozen=True)
class Schedule:
    """Time, throughput and cost of the whole training."""

    steps: int
    step: Step
    images_per_second: float
    hours: float
    gpu_hours: float
    cost: float
    mfu: float  # needed operations as a share of the peak, over the whole time
    read: float  # bytes of training data a second, for all GPUs
    checkpoint: float  # seconds to write one


def peak_flops(plan: PlanConfig, precision: str) -> float:
    """Return the peak operations a second of one GPU."""
    return TERA * (plan.gpu.bf16_tflops if precision == BF16 else plan.gpu.fp32_tflops)


def exchanged_bytes(cluster: Cluster, parameters: int, precision: str) -> float:
    """Return the bytes that each GPU sends in one step, with ring algorithms.

    DDP sends every gradient around the ring twice. FSDP gathers the weights for the forward and for the backward of
    each part of the batch, and scatters the gradients once.
    """
    gathered = 2 * cluster.accumulation * DTYPES[precision].itemsize if cluster.sharded else FULL
    return (cluster.gpus - 1) / cluster.gpus * parameters * (gathered + FULL)


def step_of(work: Work, recipe: TrainConfig, cluster: Cluster, plan: PlanConfig, precision: str) -> Step:
    images = cluster.images_at_once(recipe.batch_size) * cluster.accumulation
    executed = work.needed.total + (work.recomputed.total if cluster.checkpointed else 0)
    speed = peak_flops(plan, precision) * plan.mfu
    compute = images * executed / speed
    backward = images * (executed - work.needed.total / 3) / speed
    hiding = compute if cluster.sharded else backward / cluster.accumulation  # DDP: only in the last part's backward
    exchanged = exchanged_bytes(cluster, work.parameters, precision)
    bandwidth = plan.gpu.link if cluster.nodes == 1 else min(plan.gpu.link, plan.network)
    exchange = exchanged / (bandwidth * GIGA)
    shards = cluster.gpus if cluster.sharded else 1
    update = UPDATE_PASSES * FULL * work.parameters / shards / (plan.gpu.memory_bandwidth * GIGA)
    return Step(compute, exchange, max(0.0, exchange - hiding), update, exchanged, exchanged / hiding / GIGA)


def schedule_of(
    work: Work, recipe: TrainConfig, cluster: Cluster, plan: PlanConfig, precision: str, volumes: Volumes
) -> Schedule:
    step = step_of(work, recipe, cluster, plan, precision)
    steps = EpochOrder(volumes.images, recipe.batch_size, recipe.seed).steps(recipe.epochs)
    rate = recipe.batch_size / step.total
    hours = steps * step.total / HOUR
    return Schedule(
        steps=steps,
        step=step,
        images_per_second=rate,
        hours=hours,
        gpu_hours=hours * cluster.gpus,
        cost=hours * cluster.gpus * plan.gpu.price,
        mfu=rate * work.needed.total / cluster.gpus / peak_flops(plan, precision),
        read=rate * volumes.of_image,
        checkpoint=volumes.checkpoint / (plan.disk * GIGA),
    )
