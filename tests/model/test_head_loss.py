"""The head's loss by parts is the loss of all positions at once, with its gradients and a part of its memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.support.small_model import MODEL, PRECISIONS, random_model, small_model
from tokenbridge.base.device import autocast
from tokenbridge.model import TokenBridgeTransformer, head_loss
from tokenbridge.ops.planning.steps import HeldBytes

POSITIONS, DIMENSIONS, LEVELS, PART = 50, 4, 8, 7
CPU = torch.device("cpu")


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "NUMBERS_ON_CPU", PART * DIMENSIONS * MODEL.head_width)


def inputs() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    z = torch.randn(POSITIONS, MODEL.width, generator=random, requires_grad=True)
    return z, torch.randint(LEVELS, (POSITIONS, DIMENSIONS), generator=random)


def gradients(model: TokenBridgeTransformer, by_parts: bool, precision: str = "fp32") -> list[Tensor]:
    """The loss, twice its gradient with respect to z, and twice those of the head's weights."""
    model.head.loss_by_parts = by_parts
    z, tokens = inputs()
    with autocast(CPU, precision):
        loss = head_loss.head_loss(model.head, z, tokens, z.new_empty(len(z), 0))
    (2 * loss).backward()
    return [loss.detach(), z.grad, *(weight.grad for weight in model.head.parameters())]


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    "changes", [{}, {"head": "parallel"}, {"head_group": 2}, {"head_modulation": "position"}], ids=str
)
def test_parts_give_the_loss_and_gradients_of_the_whole(
    changes: dict[str, object], checkpointed: bool, precision: str
) -> None:
    whole, parts = (random_model(**changes) for _ in range(2))
    if checkpointed:
        parts.enable_gradient_checkpointing()
    expected, found = gradients(whole, by_parts=False, precision=precision), gradients(parts, True, precision)
    assert not whole.head.loss_by_parts
    tolerance = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    largest = max(float(gradient.abs().max()) for gradient in expected[1:])  # some are zero, such as a key's bias
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.usefixtures("in_parts")
def test_the_loss_alone_is_the_same() -> None:
    model = random_model()
    z, tokens = inputs()
    with torch.no_grad():
        alone = head_loss.head_loss(model.head, z, tokens, z.new_empty(len(z), 0))
    torch.testing.assert_close(alone, gradients(model, by_parts=True)[0])
    assert not alone.requires_grad


@pytest.mark.parametrize("changes", [{}, {"levels": 256, "head_group": 2}], ids=["levels", "65,536 classes"])
def test_only_one_part_is_in_memory(changes: dict[str, object]) -> None:
    def most(by_parts: bool) -> int:
        with torch.device("meta"):
            model = small_model(**changes)
        model.head.loss_by_parts = by_parts
        rows = head_loss.positions_at_once(model.head, model.device)
        with torch.device("meta"), HeldBytes() as held:
            z = torch.zeros(8 * rows, MODEL.width, requires_grad=True)
            tokens, uniforms = torch.zeros(8 * rows, DIMENSIONS, dtype=torch.long), torch.zeros(8 * rows, 0)
            head_loss.head_loss(model.head, z, tokens, uniforms).backward()
        return held.most

    activation = 4 * head_loss.NUMBERS  # bytes
    assert most(by_parts=True) < min(0.2 * most(by_parts=False), 100 * activation)


@pytest.mark.usefixtures("in_parts")
def test_replicas_get_their_gradients() -> None:
    expected = gradients_of_a_step(small_model(), wrap=False)
    with one_process():
        found = gradients_of_a_step(small_model(), wrap=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def gradients_of_a_step(model: TokenBridgeTransformer, wrap: bool) -> list[Tensor]:
    images, positions = 8, 16
    random = torch.Generator().manual_seed(0)
    values = torch.randn(images, positions, DIMENSIONS, generator=random)
    tokens = torch.randint(LEVELS, values.shape, generator=random)
    order = torch.rand(images, positions, generator=random).argsort(1)
    called = DistributedDataParallel(model) if wrap else model
    called(values, tokens, torch.zeros(images, dtype=torch.long), order, 12).backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


@contextmanager
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
