"""Measured bytes of a step, against torch's own autocast of GPUs and against what torch allocates on a CPU."""

from dataclasses import astuple
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tests.ops.planning.conftest import composed
from tests.ops.planning.measuring import most_taken
from tests.support.small_model import PRECISIONS
from tokenbridge.base.checks import BF16
from tokenbridge.base.device import DTYPES
from tokenbridge.config import CONTINUOUS_HEADS, Config
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.planning.sizes import Parameters, deepened, fresh_model, meta_model, step_inputs
from tokenbridge.ops.planning.steps import IMAGES, GpuNumerics, Step, activations, measured, step_bytes, step_flops

pytestmark = pytest.mark.pipeline  # for their time alone

VARIANTS = {
    "tiny": [],
    "dropout": ["models.tiny.dropout=0.1"],
    "parallel": ["models.tiny.head=parallel"],
    "grouped": ["models.tiny.head_group=2"],
    "drafted": ["models.tiny.draft_depth=2"],
    "causal": ["models.tiny.trunk=causal_random", "models.tiny.decoder_depth=2"],
    "elements": ["models.tiny.trunk=elements", "quantizer.order=natural"],
}


def saved_bytes(model: TokenBridgeTransformer, images: int) -> int:
    """Bytes that autograd keeps of one forward, each storage once."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*step_inputs(model, images), model.units)
    return sum(storage.nbytes() for storage in storages.values())


def for_an_image(model: TokenBridgeTransformer) -> int:
    return saved_bytes(model, 3) - saved_bytes(model, 2)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no GPUs, not even fake ones")
@pytest.mark.parametrize("variant", VARIANTS)
def test_numerics_are_those_of_autocast_on_a_gpu(variant: str) -> None:
    config = composed("experiment=paper", *VARIANTS[variant])
    with GpuNumerics(BF16):
        measured = for_an_image(meta_model(config, config.models["tiny"]))
    torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses where there is no GPU
    torch.set_autocast_dtype("cuda", DTYPES[BF16])
    try:
        with FakeTensorMode(), GpuNumerics(BF16) as fused:
            fused.types = {}
            with torch.device("cuda"):
                model = fresh_model(config, config.models["tiny"])
            expected = for_an_image(model)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
    assert measured == pytest.approx(expected, rel=0.01)


def peak_bytes(model: TokenBridgeTransformer, images: int, bf16: bool, trace: Path) -> int:
    """Most that torch holds at a time in forward and backward, besides weights and gradients."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        with torch.autocast("cpu", DTYPES[BF16], enabled=bf16):
            loss = model(*step_inputs(model, images), model.positions)
        loss.backward()

    return most_taken(step, trace)


def cpu_model(config: Config) -> TokenBridgeTransformer:
    return fresh_model(config, config.models["tiny"]).train()


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_peak_of_a_step_is_what_was_measured(precision: str, checkpointed: bool, tmp_path: Path) -> None:
    config, bf16, images = composed("experiment=paper"), precision == BF16, 64
    with FakeTensorMode():
        fake = cpu_model(config)
        found = activations(fake, Step(fake.positions, precision, checkpointed), images)
    model = cpu_model(config)
    if checkpointed:
        model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
    parameters = Parameters.of(model)
    assert not torch.is_autocast_enabled("cpu")  # a context that is entered twice would leave it on
    copies = 2 * (parameters.block if checkpointed else parameters.total) if bf16 else 0
    taken = peak_bytes(model, images, bf16, tmp_path / "trace.json")
    assert found.total + copies == pytest.approx(taken, rel=0.03)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_deep_model_costs_what_shallow_ones_say(variant: str, checkpointed: bool) -> None:
    config = composed("experiment=paper", *VARIANTS[variant])
    model = meta_model(config, config.models["tiny"])
    step = Step(12, BF16, checkpointed)
    whole = step_bytes(model, step, IMAGES)
    assert measured(model, step, IMAGES) == pytest.approx(astuple(whole), rel=1e-3)
    operations = deepened(model, lambda one: step_flops(one, 12, checkpointed))
    assert astuple(operations) == pytest.approx(astuple(step_flops(model, 12, checkpointed)))


@pytest.mark.parametrize("head", [*CONTINUOUS_HEADS, "bits"])
def test_a_head_that_draws_a_whole_token_has_its_share(head: str) -> None:
    """Its loss calls parts of the head, and never the head itself."""
    family = "continuous" if head in CONTINUOUS_HEADS else "gaussian"
    config = composed("experiment=paper", f"quantizer.family={family}", f"models.tiny.head={head}")
    found = step_bytes(meta_model(config, config.models["tiny"]), Step(12, BF16), 64)
    assert min(found.encoder, found.decoder, found.head) > 0
