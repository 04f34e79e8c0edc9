"""A check of results for NaN and infinity. It names the cause, which it looks for only when there is one."""

from torch import Tensor, nn

from tokenbridge.base.errors import UserError


class NotFiniteError(UserError):
    """A result that contains NaN or infinity; the message says where it came from."""


def check_finite(what: str, values: Tensor, *modules: nn.Module, inputs: Tensor | None = None) -> None:
    """Check ``values``, which ``modules`` computed from ``inputs``. A finite result costs one synchronisation.

    Raises:
        NotFiniteError: naming ``what`` and the first cause: the inputs, a weight, or the precision.
    """
    if not values.isfinite().all():
        raise NotFiniteError(f"{what} contain NaN or infinity: {_cause(modules, inputs)}")


def _cause(modules: tuple[nn.Module, ...], inputs: Tensor | None) -> str:
    for module in modules:
        for name, tensor in module.state_dict().items():
            if not tensor.isfinite().all():
                return f"{type(module).__name__}'s {name} is not finite, so train or import the model again"
    if inputs is not None and not inputs.isfinite().all():
        return "the latents that were decoded are not finite, so check the quantizer's loc, scale and levels"
    kinds = {str(each.dtype).removeprefix("torch.") for module in modules for each in module.parameters()}
    if not kinds:
        return "check the VAE and its moments"
    advice = "use bfloat16 or float32" if "float16" in kinds else "use a smaller guidance_scale, or another model"
    return f"every weight is finite, but a number became too large for {' and '.join(sorted(kinds))}: {advice}"
