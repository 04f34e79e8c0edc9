"""Optimizers: what each trains, and that nothing bad reaches the weights."""

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.muon import newton_schulz
from tests.support.small_model import RECIPE, random_model
from tokenbridge.engine.optim import Muon, NonFiniteError, build_optimizers, orthogonalize, same_sized, update_weights
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.training.trainer import is_matrix


def optimizers_of(model: nn.Module, kind: str) -> dict[str, torch.optim.Optimizer]:
    return build_optimizers(
        model,
        kind=kind,
        learning_rate=1e-3,
        muon_learning_rate=0.02,
        weight_decay=0.02,
        betas=(RECIPE.beta1, RECIPE.beta2),
        is_matrix=is_matrix,
    )


def names_in(model: nn.Module, group: dict[str, list[Tensor]]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_weight_decay_spares_biases_and_norms(model: TokenBridgeTransformer) -> None:
    decayed, plain = optimizers_of(model, "adamw")["adamw"].param_groups
    assert {"head.output_bias", "encoder_norm.weight", "token_in.bias", "head.norm.weight"} <= names_in(model, plain)
    assert {"head.output_weight", "token_in.weight"} <= names_in(model, decayed)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.02, 0.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_trained_once(model: TokenBridgeTransformer, kind: str) -> None:
    groups = [group for optimizer in optimizers_of(model, kind).values() for group in optimizer.param_groups]
    trained = [parameter for group in groups for parameter in group["params"]]
    assert len(trained) == len({id(parameter) for parameter in trained}) == len(list(model.parameters()))


SHAPES = [(8, 32), (32, 8), (8, 8), (9, 8)]


def test_orthogonalize_makes_singular_values_near_one() -> None:
    random = torch.Generator().manual_seed(0)
    for result in orthogonalize([torch.randn(shape, generator=random) * 3 for shape in SHAPES]):
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.5
        assert values.max() < 1.5


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6])
def test_orthogonalize_is_the_published_iteration(smallest: float) -> None:
    """Also for a gradient whose directions differ in size, where float32 rounds the small ones."""
    random = torch.Generator().manual_seed(0)
    matrices = []
    for rows, columns in SHAPES:
        u, s, v = torch.linalg.svd(torch.randn(rows, columns, generator=random), full_matrices=False)
        matrices.append(u * torch.logspace(0, math.log10(smallest), len(s)) @ v)
    for matrix, result in zip(matrices, orthogonalize(matrices), strict=True):
        expected = newton_schulz(matrix.double())
        assert (result - expected).norm() <= 2e-3 * expected.norm()


def test_parameters_are_batched_by_their_smaller_side() -> None:
    kernels = [nn.Parameter(torch.zeros(shape)) for shape in [(8, 9), (4, 2, 3, 3), (16, 4), (200, 900), (900, 200)]]
    batches = [[tuple(kernel.shape) for kernel in batch] for batch in same_sized([*kernels, *kernels[-2:]])]
    assert batches == [[(8, 9)], [(4, 2, 3, 3), (16, 4)], [(200, 900), (900, 200), (200, 900)], [(900, 200)]]


def test_muon_moves_kernels_by_its_rate_whatever_the_gradient() -> None:
    moves = []
    for size in (1e-3, 1e3):
        kernel = nn.Parameter(torch.zeros(4, 2, 3, 3))
        kernel.grad = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * size
        Muon([kernel], lr=0.1).step()
        moves.append(kernel.detach().norm().item())
    assert moves[0] == pytest.approx(moves[1], rel=1e-3)  # 1e-7 keeps the norm of a small gradient from being zero
    assert moves[0] == pytest.approx(0.1 * math.sqrt(4), rel=0.3)  # four orthogonal rows


def test_rates_follow_the_factor(model: TokenBridgeTransformer) -> None:
    optimizers = optimizers_of(model, "muon")
    update_weights(torch.zeros(()), model, list(optimizers.values()), factor=0.5, clip_norm=1.0, step=0)
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
    assert rates == {"adamw": 5e-4, "muon": 0.01}


def test_adamw_is_fused_on_gpus_alone_and_updates_alike(
    model: TokenBridgeTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = optimizers_of(model, "adamw")["adamw"]
    assert not plain.defaults["fused"]
    twin = random_model()
    twin.load_state_dict(model.state_dict())
    monkeypatch.setattr("tokenbridge.engine.optim.FUSED", ("cpu",))
    fused = optimizers_of(twin, "adamw")["adamw"]
    assert fused.defaults["fused"]
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=random)
            theirs.grad = ours.grad.clone()
        plain.step()
        fused.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_leaves_the_weights_whole(bad: float) -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    loss = model(torch.ones(1, 2)).sum() * bad
    loss.backward()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(NonFiniteError, match="at step 7"):
        update_weights(loss, model, [optimizer], factor=1.0, clip_norm=1.0, step=7)
    assert torch.equal(model.weight, before)
