"""The roofline: operations and bytes of kernels, against closed forms."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.ops.planning.conftest import composed
from tokenbridge.base.checks import BF16
from tokenbridge.ops.planning.roofline import Kernel, Kernels, forward_and_backward, moved, seconds, step_kernels
from tokenbridge.ops.planning.sizes import meta_model
from tokenbridge.ops.planning.steps import step_flops

PLAN = composed("experiment=paper").plan


def test_a_kernel_takes_the_longer_of_both_times() -> None:
    gpu = PLAN.gpu
    products, copies = Kernel(gpu.bf16_tflops * 1e12, 1.0), Kernel(1.0, 2e9 * gpu.memory_bandwidth)
    assert products.seconds(PLAN, BF16) == pytest.approx(1.0)
    assert copies.seconds(PLAN, BF16) == pytest.approx(2.0)
    assert seconds([products, copies], PLAN, BF16) == pytest.approx(3.0)
    faster = replace(PLAN, gpu=replace(gpu, memory_bandwidth=2 * gpu.memory_bandwidth))
    assert copies.seconds(faster, BF16) == pytest.approx(1.0)


def test_a_linear_layer_is_one_kernel_forward_and_two_products_backward() -> None:
    rows, inputs, outputs = 1000, 30, 50
    with torch.device("meta"):
        layer, x = nn.Linear(inputs, outputs, bias=False), torch.empty(rows, inputs, requires_grad=True)
    found = [kernel for kernel in forward_and_backward(lambda: layer(x), "fp32") if kernel.flops]
    assert [kernel.flops for kernel in found] == [2 * rows * inputs * outputs] * 3
    assert found[0].moved == 4 * (rows * inputs + inputs * outputs + rows * outputs)


def test_views_move_nothing_and_what_is_expanded_counts_once() -> None:
    x = torch.empty(8, 1, device="meta")
    with Kernels() as kernels:
        expanded = x.expand(8, 100).transpose(0, 1)
    assert kernels.found == []
    assert moved(expanded) == 8 * 4
    with Kernels() as kernels:
        x.add_(1)
    assert kernels.found == [Kernel(0, 2 * 8 * 4)]


def test_the_parts_have_the_operations_of_the_step() -> None:
    config = composed("experiment=paper")
    model = meta_model(config, config.models["tiny"]).train()
    images, masked = 4, 12
    parts, whole = step_kernels(model, BF16, images, masked), step_flops(model, masked)
    counted = {part: sum(kernel.flops for kernel in kernels) / images for part, kernels in parts.items()}
    assert counted["head"] == pytest.approx(whole.head, rel=0.01)
    assert counted["decoder"] == pytest.approx(whole.decoder, rel=0.01)
    assert counted["encoder"] == pytest.approx(whole.encoder, rel=0.01)
    assert counted["update"] == 0
