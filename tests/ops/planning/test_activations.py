"""Bytes kept for the backward by formula, against what autograd saves and what torch allocates."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tests.conftest import PRECISIONS
from tests.ops.planning.conftest import batch, composed
from tests.ops.planning.measuring import most_taken
from tokenbridge.base.checks import BF16
from tokenbridge.config import Config
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.ops.planning.activations import Numerics, activations
from tokenbridge.ops.planning.sizes import Parameters, Sizes, fresh_model

PARTS = ["model=base", "models.base.encoder_depth=1", "models.base.decoder_depth=2", "models.base.head_depth=2"]
VARIANTS = {
    "tiny": ["model=tiny"],
    "dropout": ["model=tiny", "models.tiny.dropout=0.1"],
    "parallel": ["model=tiny", "models.tiny.head=parallel"],
    "grouped": ["model=tiny", "models.tiny.head_group=2"],
    "a part of base": ["experiment=imagenet_l", *PARTS],
}


def built(config: Config) -> tuple[TokenBridgeTransformer, Sizes]:
    (model,) = config.models.values()
    return fresh_model(config, model).train(), Sizes.of(config, model)


def forward(model: TokenBridgeTransformer, sizes: Sizes, images: int, masked: int, bf16: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model(*batch(sizes, images, "cpu"), masked)


def saved_bytes(model: TokenBridgeTransformer, sizes: Sizes, images: int, masked: int, bf16: bool) -> int:
    """Each storage once, parameters not counted."""
    storages, kept = {}, []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # lest another storage gets its address
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(model, sizes, images, masked, bf16)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in storages.items() if place not in own)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_for_an_image_is_the_formula(variant: str, precision: str) -> None:
    bf16 = precision == BF16
    model, sizes = built(composed(*VARIANTS[variant]))
    few, many, masked = 1, 2, sizes.positions * 3 // 4
    if sizes.positions > 16:
        masked = 16  # a step of few slots, so that it takes seconds
    each = (saved_bytes(model, sizes, many, masked, bf16) - saved_bytes(model, sizes, few, masked, bf16)) / (many - few)
    found = activations(sizes, masked, Numerics(bf16, fused=False))
    assert found.total - found.working == pytest.approx(each, rel=0.02)


def peak_bytes(model: TokenBridgeTransformer, sizes: Sizes, images: int, bf16: bool, trace: Path) -> int:
    """Most that torch holds at a time in forward and backward, besides weights and gradients."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return most_taken(lambda: forward(model, sizes, images, sizes.positions, bf16).backward(), trace)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_peak_of_a_step_is_the_formula(precision: str, checkpointed: bool, tmp_path: Path) -> None:
    bf16 = precision == BF16
    model, sizes = built(composed("model=tiny"))
    if checkpointed:
        for block in (*model.encoder, *model.decoder, *model.head.blocks):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    images = 64
    measured = peak_bytes(model, sizes, images, bf16, tmp_path / "trace.json")
    found = activations(sizes, sizes.positions, Numerics(bf16, fused=False), checkpointed)
    parameters = Parameters.of(model)
    copies = 2 * (parameters.block if checkpointed else parameters.total) if bf16 else 0
    assert images * found.total + copies == pytest.approx(measured, rel=0.1)


def test_the_fused_attention_keeps_no_scores() -> None:
    _, sizes = built(composed("model=tiny"))
    plain, fused = (activations(sizes, 8, Numerics(False, fused)) for fused in (False, True))
    assert fused.decoder < plain.decoder
    assert fused.head < plain.head
