"""A training as ``tokenbridge plan`` plans it, but on CPUs, and the memory that torch says it takes."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from tests.support.small_data import write_moments
from tokenbridge.base.checks import AUTO
from tokenbridge.base.device import resolve_precision
from tokenbridge.base.distributed import Processes
from tokenbridge.config import Config
from tokenbridge.engine.ema import local_shard
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.memory import Memory
from tokenbridge.ops.planning.plan import memory_model
from tokenbridge.ops.planning.sizes import fresh_model, grid_side
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.trainer import Trainer

# wide enough that what is not counted, an image's tokens and the like, is little beside weights and activations
WIDE = ["experiment=paper", "models.tiny.width=256", "models.tiny.head_width=256", "models.tiny.encoder_depth=1"]
# every position masked in every step: the mask that the plan takes, which needs most
WIDE += ["models.tiny.decoder_depth=2", "train.mask_ratio_min=1.0"]
# what this processor computes without emulation; the plan itself takes auto for bf16
WIDE += [f"train.precision={resolve_precision(AUTO, torch.device('cpu'))}"]


def planned(config: Config, cluster: Cluster, images: int) -> Memory:
    """The plan of the only model of ``config`` for so many images at once on a CPU."""
    ((name, model),) = config.models.items()
    with FakeTensorMode():
        memory = replace(memory_model(config, name), model=fresh_model(config, model), cluster=cluster)
        return memory.at(images)


def trainer_of(config: Config, folder: Path, processes: Processes) -> Trainer:
    """Of the only model of ``config``, on random moments in ``folder``, with the update that GPUs make by default."""
    (model,) = config.models.values()
    side = grid_side(config)
    latents = torch.randn(64, config.dimensions, side, side, generator=torch.Generator().manual_seed(1))
    moments, quantizer = write_moments(folder / "moments", latents), fit_quantizer(latents, config.quantizer)
    data = FreshTokens(moments, quantizer)
    trainer = Trainer(model, data, quantizer, folder, config.launcher, torch.device("cpu"), processes)
    for group in trainer.optimizers["adamw"].param_groups:
        group["foreach"] = True
    return trainer


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the parts that this process holds."""
    return sum(part.numel() * part.element_size() for part in map(local_shard, tensors))


def held_between_steps(trainer: Trainer) -> dict[str, int]:
    """Bytes of what this process keeps, by the plan's names; of FSDP's tensors, its shards."""
    moments = (
        value for each in trainer.optimizers.values() for state in each.state.values() for value in state.values()
    )
    return {
        "weights": local_bytes(trainer.model.parameters()),
        "average": local_bytes(trainer.ema.averages.values()),
        "optimizer": local_bytes(value for value in moments if value.ndim),  # without the numbers of steps
    }


def most_taken(work: Callable[[], object], trace: Path) -> int:
    """Most bytes that torch holds at a time while ``work`` is done, besides what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def peak_of_a_step(trainer: Trainer, trace: Path) -> int:
    """Bytes at the peak of the second step: the first one makes the optimizer's states."""
    trainer.step(0)
    return sum(held_between_steps(trainer).values()) + most_taken(lambda: trainer.step(1), trace)
