"""Optimizers of all trainings: AdamW as in the paper, or Muon for the matrices of short runs.

Every parameter group keeps its peak rate as ``initial_lr``; ``update_weights`` scales it by the schedule.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
GRAM_NUMBERS = 2**17  # at most in a batch of Gram matrices
MOMENTUM = 0.95
FUSED = ("cuda",)  # types of device on which AdamW updates everything in one kernel; others keep their bits
NamedParameter = tuple[str, nn.Parameter]


class NonFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite. It is raised before the update, so the weights are still finite."""

    def __init__(self, name: str, value: float, step: int, details: str = "") -> None:
        self.name, self.value = name, value
        super().__init__(
            f"{name} is {value} at step {step}: the weights were not changed; lower the learning rate, "
            f"or train with precision=fp32. {details}".rstrip()
        )


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return about the nearest (semi-)orthogonal matrix of each, by Newton-Schulz in float32 (Jordan et al. 2024).

    The smaller sides of all matrices must be equal.

    Differs: the released iteration multiplies X [m, n] by a polynomial of its Gram matrix X Xᵀ [m, m] at every step.
    Here the polynomials of all steps are multiplied first, and X once at the end. The result is the same, with fewer
    operations, and the small Gram matrices are iterated as one batch.
    """
    wide = [(each.T if each.shape[0] > each.shape[1] else each).float() for each in matrices]
    normed = [x / (x.norm() + 1e-7) for x in wide]
    factors = _newton_schulz_factors(torch.stack([x @ x.T for x in normed]))
    results = [factor @ x for factor, x in zip(factors, normed, strict=True)]
    return [
        (result if result.shape == each.shape else result.T).to(each.dtype)
        for result, each in zip(results, matrices, strict=True)
    ]


def same_sized(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield batches of parameters for ``orthogonalize``, small enough to need little memory."""
    by_size: dict[int, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        by_size[min(parameter.flatten(1).shape)].append(parameter)
    for size, alike in by_size.items():
        count = max(1, GRAM_NUMBERS // size**2)
        yield from (alike[start : start + count] for start in range(0, len(alike), count))


def _newton_schulz_factors(gram: Tensor) -> Tensor:
    """Return the product of every step's polynomial a I + b G + c G², for Gram matrices [k, m, m].

    After a step with the polynomial P, the Gram matrix of P X is P G P.
    """
    a, b, c = NEWTON_SCHULZ
    product = torch.eye(gram.shape[1], device=gram.device).expand_as(gram)
    for _ in range(NEWTON_SCHULZ_STEPS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): orthogonalised momentum, for matrices and for convolution kernels [out, in, k, k].

    torch.optim.Muon does not accept kernels. Here a kernel is treated as the matrix [out, in k k].
    """

    def __init__(self, params: Iterable[NamedParameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon evaluates no closure"
        for group in self.param_groups:
            for batch in same_sized(parameter for parameter in group["params"] if parameter.grad is not None):
                updates = orthogonalize([self._momentum(parameter).flatten(1) for parameter in batch])
                for parameter, update in zip(batch, updates, strict=True):
                    scale = math.sqrt(max(1.0, update.shape[0] / update.shape[1]))
                    parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Update the parameter's momentum, and return it as Nesterov does: one step ahead."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(momentum, MOMENTUM)


def build_optimizers(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    kind: str = "adamw",
    muon_learning_rate: float = 0.0,
    is_matrix: Callable[[str, nn.Parameter], bool] = lambda *_: False,
) -> dict[str, torch.optim.Optimizer]:
    """Return AdamW for all parameters, or with ``kind`` "muon" Muon for those of ``is_matrix`` and AdamW for the rest.

    Weight decay acts on AdamW's matrices and tables, not on biases and norms (MAR).
    """
    matrices: list[NamedParameter] = []
    decayed: list[NamedParameter] = []
    plain: list[NamedParameter] = []
    for name, parameter in model.named_parameters():
        if kind == "muon" and is_matrix(name, parameter):
            matrices.append((name, parameter))
        else:
            (plain if parameter.ndim == 1 or name.endswith("bias") else decayed).append((name, parameter))
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    # torch counts an empty group as one without parameter names, and refuses to mix it with named groups
    groups = [group for group in groups if group["params"]]
    fused = all(parameter.device.type in FUSED for parameter in model.parameters())
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused or None)
    optimizers: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
    if matrices:
        optimizers["muon"] = Muon(matrices, lr=muon_learning_rate)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def update_weights(
    loss: Tensor,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    factor: float,
    clip_norm: float,
    step: int,
    apart: nn.Module | None = None,
) -> Tensor:
    """Clip the accumulated gradients, step every optimizer at ``factor`` times its peak rate, and clear the gradients.

    Args:
        apart: a part of ``model`` whose gradients are clipped by themselves, so that the rest does not depend on them.

    Returns:
        The norm before clipping of the gradients that are not ``apart``.

    Raises:
        NonFiniteError: if the loss or a norm is not finite; no weight has changed.
    """
    by_itself = [] if apart is None else list(apart.parameters())
    rest = set(model.parameters()).difference(by_itself)
    norm = _clip([parameter for parameter in model.parameters() if parameter in rest], clip_norm)
    norm_apart = _clip(by_itself, clip_norm)
    for name, value in (("loss", loss.detach()), ("gradient norm", norm), ("gradient norm", norm_apart)):
        if not torch.isfinite(value):
            raise NonFiniteError(name, float(value), step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def _clip(parameters: Sequence[nn.Parameter], clip_norm: float) -> Tensor:
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
