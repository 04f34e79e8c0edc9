"""The validation loss: that of the training (of levels, the cross-entropy), on images that no model is trained on.

Images, tokens, masks and orders are the same for every seed, recipe, batch size and number of processes. No label is
dropped. So the losses of trainings with the same levels are comparable.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from tokenbridge.base.distributed import Processes
from tokenbridge.base.seeding import generator
from tokenbridge.base.slices import images_at_once
from tokenbridge.model import AutoregressiveModel
from tokenbridge.tokenizer.latents import Quantizer
from tokenbridge.training.batches import Batch, batch_loss
from tokenbridge.training.datasets import TrainingData

MAX_IMAGES = 1000  # if there are more validation images, an evenly spread choice of them is used
BATCHES = 10  # each batch has another number of masked positions, from few to nearly all, if the trunk is masked
HELD, HELD_LOGITS = 21, 4  # numbers that the head holds at once, at most, for each of its features, of its logits


class Validation:
    """The measurement of the validation loss; the processes share each batch.

    Args:
        data: tokens of the validation images.
    """

    def __init__(self, data: TrainingData, quantizer: Quantizer, processes: Processes) -> None:
        self.data, self.quantizer, self.processes = data, quantizer, processes
        self.count = min(MAX_IMAGES, len(data))
        self.batches = min(BATCHES, self.count)

    @torch.no_grad()
    def loss(self, model: AutoregressiveModel) -> float:
        """Return the mean over images of the loss for each number of a token. Every process must call this."""
        total = torch.stack([self._summed_loss(model, number) for number in range(self.batches)]).sum()
        return float(self.processes.total(total)) / self.count

    def batch(self, number: int, part: slice, model: AutoregressiveModel) -> Batch:
        """Return the images ``part`` of a batch for a model of this kind. The batch depends only on its number.

        A causal trunk predicts all positions in one pass. For a masked one, the mean over the numbers of masked
        positions takes its place: both estimate the likelihood of an image that is drawn position by position.
        """
        indices = torch.arange(number, self.count, self.batches) * len(self.data) // self.count
        random = generator("validation", number)
        tokens = self.data.draw(indices, random, part)
        units = model.units
        order = torch.rand(len(indices), units, generator=random)[part].argsort(dim=1)
        masked = units if model.causal else math.ceil(units * (number + 0.5) / self.batches)
        num_masked = torch.tensor(masked).expand(len(tokens))
        uniforms = torch.rand(len(indices), units, model.head.loss_numbers, generator=random)[part]
        return Batch(tokens, self.data.labels[indices][part], order, num_masked, uniforms)

    def _summed_loss(self, model: AutoregressiveModel, number: int) -> Tensor:
        """Return the sum of the loss over this process's images, in as many parts as every other process has."""
        images = len(range(number, self.count, self.batches))
        share, most = self.processes.share(images), -(-images // self.processes.world)
        parts = -(-most // images_at_once(held_values(model), most))
        cuts = [share.start + (share.stop - share.start) * part // parts for part in range(parts + 1)]
        return torch.stack([self._part_loss(model, number, slice(*ends)) for ends in pairwise(cuts)]).sum()

    def _part_loss(self, model: AutoregressiveModel, number: int, part: slice) -> Tensor:
        """Return the sum of the loss over the images ``part`` of a batch.

        If there are none, one image is computed with weight 0, because all processes must take part.
        """
        own = part.stop - part.start
        images = part if own else slice(0, 1)
        batch = self.batch(number, images, model).to(self.quantizer.loc.device)
        return batch_loss(model, self.quantizer, batch).double() * own


def held_values(model: AutoregressiveModel) -> int:
    """Return a bound on the numbers that exist at once while the loss of one image is computed without gradients.

    It holds for a head that computes all positions at once, as it does with FSDP.
    """
    head = model.head
    return model.units * max(HELD * head.numbers, HELD_LOGITS * head.outputs)
