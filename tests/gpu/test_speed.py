"""Throughput and memory of L on this GPU, against what `tokenbridge plan` says."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import Sizes, composed, large, train_on
from tokenbridge.base.checks import BF16
from tokenbridge.base.device import DTYPES, autocast, device_name
from tokenbridge.config import Config
from tokenbridge.ops.planning.flops import sample_flops
from tokenbridge.ops.planning.memory import GIB
from tokenbridge.ops.planning.plan import memory_model
from tokenbridge.ops.planning.schedule import TERA, peak_flops
from tokenbridge.ops.planning.sizes import meta_model
from tokenbridge.ops.planning.steps import train_flops
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.training.datasets import FreshTokens

pytestmark = pytest.mark.gpu

Record = Callable[[str, object], None]

CARDS = {"A100": "default", "H100": "h100", "H200": "h100"}  # part of a GPU's name -> plan=; both Hoppers compute alike
SHARE = 0.7  # of the GPU's memory that the planned batch may take
MOST_IMAGES = 32
SIDE = 8192  # of the matrices whose product gives the GPU's own rate
SAMPLING_STEPS, SAMPLES = 32, 64
ABOVE_PLAN = 1.15  # a batch that the plan says fits must fit

# the masks that the plan takes, which need most; then every step does the same work
ALL_MASKED = "train.mask_ratio_min=1.0"


def seconds(call: Callable[[int], object], times: int, device: torch.device) -> float:
    """Mean over calls, after one to warm up."""
    call(0)
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for number in range(1, times + 1):
        call(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def record_rate(record: Record, config: Config, flops: float, device: torch.device) -> None:
    """Record operations a second, as a share of the data sheet's and of a large product's."""
    record("rate", f"{flops / TERA:.3g} TFLOP/s")
    if device.type != "cuda":
        return
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=DTYPES[BF16]) for _ in range(2))
    product = 2 * SIDE**3 / seconds(lambda _: a @ b, 20, device)
    record("share of a large product's rate", f"{flops / product:.0%} of {product / TERA:.0f} TFLOP/s")
    plans = [plan for card, plan in CARDS.items() if card in device_name(device)]
    for plan in (composed(device, f"plan={each}").plan for each in plans):
        peak = peak_flops(plan, BF16)
        record("MFU", f"{flops / peak:.0%} of {peak / TERA:.0f} TFLOP/s; the plan takes {config.plan.mfu:.0%}")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.pipeline)], ids=["eager", "compiled"])
def test_training_steps(
    data: FreshTokens, device: torch.device, sizes: Sizes, tmp_path: Path, record_property: Record, compiled: bool
) -> None:
    config = composed(device, ALL_MASKED, *large(*sizes.large), f"launcher.compile={compiled}", "train.epochs=100")
    memory = memory_model(config, "large")
    images = 2
    if device.type == "cuda":
        room = SHARE * torch.cuda.get_device_properties(device).total_memory
        images = min(MOST_IMAGES, memory.largest(room))
        assert images, "not even one image of L fits"
    recipe = replace(config.models["large"].train, batch_size=images)
    config.models["large"] = replace(config.models["large"], train=recipe)
    trainer = train_on(data, config, tmp_path / "training", device)
    taken = seconds(trainer.step, sizes.steps, device)
    record_property("training", f"{images / taken:.1f} images/s, {images} at once")
    record_rate(record_property, config, images / taken * train_flops(memory.model, recipe).total, device)
    if device.type == "cuda":
        peak, planned = torch.cuda.max_memory_allocated(), memory.at(images).total
        record_property("peak memory", f"{peak / GIB:.1f} GiB; the plan says {planned / GIB:.1f}")
        assert peak < ABOVE_PLAN * planned


def test_sampling(data: FreshTokens, device: torch.device, sizes: Sizes, record_property: Record) -> None:
    config = composed(device, *large(*sizes.large))
    settings = replace(config.generate, steps=min(SAMPLING_STEPS, sizes.side**2))
    fresh = meta_model(config, config.models["large"])
    torch.manual_seed(0)
    arguments = {"grid_height": sizes.side, "grid_width": sizes.side}
    with torch.device(device):
        model = type(fresh).from_config(fresh.config, **arguments).eval()
    with torch.device("meta"):
        planned = type(fresh).from_config(fresh.config, **arguments).eval()
    count = SAMPLES if device.type == "cuda" else 2
    draws = Draws.from_generators([torch.Generator().manual_seed(i) for i in range(count)], model.positions, 16)
    labels, quantizer = torch.zeros(count, dtype=torch.long, device=device), data.quantizer.to(device)

    def draw(_: int) -> None:
        with autocast(device, config.models["large"].train.precision):
            sample_tokens(model, quantizer, labels, draws.to(device), settings)

    taken = seconds(draw, 1, device)
    record_property("sampling", f"{count / taken:.2f} images/s in {settings.steps} steps, {count} at once")
    record_rate(record_property, config, count / taken * sample_flops(planned, settings).total, device)
