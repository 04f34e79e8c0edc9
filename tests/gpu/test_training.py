"""Training steps of a slice of L, alone and in a process group of one, compiled, repeated and resumed."""

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from tests.gpu.conftest import MakeTrainer
from tokenbridge.base.checkpoints import Checkpoints, live_tensors
from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.training import trainer as training
from tokenbridge.training.parallel import gather_full, replicate, shard
from tokenbridge.training.trainer import Trainer

pytestmark = pytest.mark.gpu
slow_on_cpus = pytest.mark.pipeline  # `make test-fast` leaves it out

STEPS = 4
ROUNDING = {"fp32": 1e-4, "bf16": 1e-2}  # relative differences of losses


def losses(trainer: Trainer, *steps: int) -> Tensor:
    return torch.stack([trainer.step(step)["loss"] for step in steps or range(STEPS)]).cpu()


def check_alike(ours: Tensor, theirs: Tensor, precision: str) -> None:
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, theirs, rtol=ROUNDING[precision], atol=0)


@slow_on_cpus
def test_compiled_steps_give_the_losses_of_eager_ones(make_trainer: MakeTrainer) -> None:
    eager = make_trainer("eager")
    check_alike(losses(make_trainer("compiled", compile=True)), losses(eager), eager.recipe.precision)


@slow_on_cpus
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.usefixtures("group")
def test_a_group_of_one_gives_the_losses_of_no_group(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    alone = make_trainer("alone")

    def distribute(model: TokenBridgeTransformer, _launcher: object, precision: str, _processes: object) -> object:
        if strategy == "ddp":
            return replicate(model)
        shard(model, precision, init_device_mesh(model.device.type, (1,)))
        return model

    monkeypatch.setattr(training, "distribute", distribute)
    shared = make_trainer("shared")
    check_alike(losses(shared), losses(alone), shared.recipe.precision)
    gathered = gather_full(dict(shared.model.named_parameters()), SINGLE_PROCESS)
    assert all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in gathered.values())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=slow_on_cpus)], ids=["eager", "compiled"])
@pytest.mark.usefixtures("deterministic")
def test_a_deterministic_training_resumes_with_the_same_bits(make_trainer: MakeTrainer, compiled: bool) -> None:
    whole = make_trainer("whole", dropout=0.1, compile=compiled)
    expected = losses(whole)
    first = make_trainer("first", dropout=0.1, compile=compiled)
    begun = losses(first, 0, 1)
    saved = Checkpoints(first.folder / "checkpoints")
    saved.save(2, first.state, {})
    saved.finish()
    second = make_trainer("second", dropout=0.1, compile=compiled)
    Checkpoints(first.folder / "checkpoints").load(second.state)
    assert torch.equal(torch.cat([begun, losses(second, 2, 3)]), expected)
    ours, theirs = live_tensors(second.state), live_tensors(whole.state)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
