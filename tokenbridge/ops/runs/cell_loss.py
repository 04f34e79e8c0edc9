"""The likelihood of the paper's tokens under a mixture of Gaussians: the probability of each token's cell.

The loss of a mixture is a density of latents, and says nothing of bits. The probability that the latents lie in a
token's cell can be compared with what the heads for levels predict.

Shapes: N images, S positions, C dimensions, B levels, M predicted positions of all images.
"""

from pathlib import Path

import torch
from torch import Tensor

from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.config import QuantizerConfig
from tokenbridge.model import AutoregressiveModel
from tokenbridge.model.layers import gather
from tokenbridge.model.mixture_head import MixtureHead
from tokenbridge.ops.runs.study import MODEL
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.tokenizer.latents import Quantizer
from tokenbridge.tokenizer.moments import Moments, fitting_latents
from tokenbridge.training.batches import Batch
from tokenbridge.training.datasets import ALL, FreshTokens
from tokenbridge.training.validation import Validation


def cell_loss(folder: Path, levels: QuantizerConfig, seed: int) -> float:
    """Return the cross-entropy of the levels of validation tokens, in nats for each level.

    Images, tokens, masks and orders are those of the validation loss.

    Args:
        folder: of a project whose model has a mixture head.
        levels: the settings of a quantizer to levels; it is fitted as in the stage ``fit_quantizer``.
        seed: the project's.
    """
    model = TokenBridgePipeline.from_pretrained(folder / "models" / MODEL).transformer
    fitting = fitting_latents(Moments(folder / "data/moments"), levels.fit_images, seed)
    quantizer = fit_quantizer(fitting, levels)
    data = FreshTokens(Moments(folder / "data/validation_moments"), quantizer)
    validation = Validation(data, quantizer, SINGLE_PROCESS)
    batches = [validation.batch(number, ALL, model) for number in range(validation.batches)]
    return sum(batch_cell_loss(model, quantizer, batch) * len(batch.tokens) for batch in batches) / validation.count


@torch.no_grad()
def batch_cell_loss(model: AutoregressiveModel, quantizer: Quantizer, batch: Batch) -> float:
    """Return the cross-entropy of the levels at the masked positions of one mask group, in nats for each level."""
    masked = int(batch.num_masked[0])
    read, predicted = model.training_positions(batch.order, masked, masked)
    z = model.features(quantizer.decode(batch.tokens), batch.labels, read, predicted).flatten(0, 1)
    lower, upper = cells(quantizer.values, gather(batch.tokens, predicted).flatten(0, 1))
    head = model.head
    assert isinstance(head, MixtureHead)
    return -float(head.log_cell_probabilities(z, lower, upper).mean()) / lower.shape[-1]


def cells(levels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends [M, C] of the cells of tokens [M, C]: midpoints between levels [C, B], or infinite."""
    far = levels.new_full((len(levels), 1), torch.inf)
    ends = torch.cat([-far, (levels[:, 1:] + levels[:, :-1]) / 2, far], dim=1).expand(len(tokens), -1, -1)
    lower, upper = (ends.gather(2, indices[..., None])[..., 0] for indices in (tokens, tokens + 1))
    return lower, upper
