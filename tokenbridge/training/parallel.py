"""Training over many processes, replicated (DDP) or sharded (FSDP2), with torch.distributed only."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._triton import has_triton

from tokenbridge.base.device import DTYPES
from tokenbridge.base.distributed import Processes
from tokenbridge.config import FP32, FSDP, LauncherConfig
from tokenbridge.model import AutoregressiveModel


def distribute(model: AutoregressiveModel, launcher: LauncherConfig, precision: str, processes: Processes) -> nn.Module:
    """Return the module to call in training instead of ``model``. The parameters to train are still those of ``model``.

    With fsdp, ``model`` itself is sharded in place and returned. All processes must have made the same weights.
    Gradients are the mean over processes.
    """
    if launcher.checkpoint_activations:
        model.enable_gradient_checkpointing()
    if compiles(launcher, model.device):
        # symbolic sizes: one graph serves every number of masked positions, and no position is padded. With them, a
        # block that is computed again saves other tensors than its forward did, which torch's checkpointing refuses
        model.compile_repeated_blocks(dynamic=None if launcher.checkpoint_activations else True)
    if processes.world == 1:
        return model
    if launcher.strategy == FSDP:
        shard(model, precision, init_device_mesh(model.device.type, (processes.world,)))
        return model
    return replicate(model)


def compiles(launcher: LauncherConfig, device: torch.device) -> bool:
    """Return whether the repeated blocks are compiled: as set, or by default on GPUs where Triton can compile."""
    if launcher.compile is not None:
        return launcher.compile
    # Triton compiles its launchers with the C compiler of this machine
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return device.type == "cuda" and has_triton() and any(shutil.which(name) for name in compilers if name)


def replicate(model: AutoregressiveModel) -> DistributedDataParallel:
    """Wrap ``model`` so that every process holds all of it, and gradients are averaged."""
    gpus = [model.device] if model.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=gpus, gradient_as_bucket_view=True)


def shard(model: AutoregressiveModel, precision: str, mesh: DeviceMesh) -> None:
    """Shard ``model`` with FSDP2: a block's weights are gathered while it runs. Gradients are summed in float32."""
    block_dtype = None if precision == FP32 else DTYPES[precision]
    # inputs keep their type: autocast decides what is computed in bf16, as it does without sharding
    policy = MixedPrecisionPolicy(param_dtype=block_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for head in model.heads:
        head.loss_by_parts = False  # a block's weights are there only while it runs, so no gradient can be asked for
    empty = {parameter for parameter in model.parameters() if not parameter.numel()}  # FSDP2 cannot shard them
    for parameter in empty:
        parameter.requires_grad_(False)  # gradients that are not sharded cannot be clipped with those that are
    for block in [*model.encoder, *model.decoder, *(block for head in model.heads for block in head.blocks)]:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=empty)
    # embeddings and positions too: on CPUs, LayerNorm does not accept float32 inputs with a block's bfloat16 weights
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=empty)


@contextmanager
def gradients_stay(model: nn.Module) -> Iterator[None]:
    """Keep gradients local within this context: they add up over parts of a batch, and processes exchange none."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluate the model within this context, without dropout and gradients; then restore training and sharding."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()  # FSDP2 leaves the weights of the root module gathered after a forward pass
        model.train()


def gather_full(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Return whole tensors on the CPU, each gathered from its shards, in the first process; nothing in the others.

    Every process must call this. The others hold one whole tensor at a time, on the device of its shards.
    """
    gathered = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if processes.first:
            gathered[name] = whole.cpu()
    return gathered
