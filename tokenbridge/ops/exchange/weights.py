"""Released weights, matched with a model's tensors by name."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from tokenbridge.base.loading import LoadError, check_tensor


class ImportFailedError(LoadError):
    """A checkpoint that does not fit what was asked for; the message names the tensors or the setting."""


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Tensor], released_names: Callable[[str], list[str]]) -> None:
    """Copy ``weights`` into ``model``; each tensor on either side must be used exactly once.

    Args:
        released_names: the names in ``weights`` for one of the model's tensors; several names are its rows, in order.

    Raises:
        UserError: naming the tensors that are missing, left over, of another shape or not finite.
    """
    targets = model.state_dict()
    sources = {name: released_names(name) for name in targets}
    wanted = [source for names in sources.values() for source in names]
    missing = [source for source in wanted if source not in weights]
    left_over = sorted(set(weights) - set(wanted))
    if missing or left_over:
        raise ImportFailedError(
            f"the checkpoint is not of the layout expected here. Missing: {', '.join(missing) or 'nothing'}. "
            f"Left over: {', '.join(left_over) or 'nothing'}"
        )
    for name, target in targets.items():
        _copy_rows(target, {source: weights[source] for source in sources[name]})


def _copy_rows(target: Tensor, rows: dict[str, Tensor]) -> None:
    """Copy the tensors of ``rows``, in order, into ``target``.

    Axes of size 1 are ignored when shapes are compared, because a 1 x 1 convolution is a linear layer.
    """
    shape = _without_ones([target.shape[0] // len(rows), *target.shape[1:]])
    for name, tensor in rows.items():
        if _without_ones(tensor.shape) != shape:
            raise ImportFailedError(f"{name} has shape {list(tensor.shape)}, but the other tensors ask for {shape}")
        check_tensor(name, tensor, target)
    target.copy_(torch.stack(list(rows.values())).reshape(target.shape))


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size > 1]
