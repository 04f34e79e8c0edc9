"""A codebook that is trained with the VAE, as in VQ-VAE (van den Oord et al. 2017), VQGAN and LlamaGen.

The decoder sees the codeword nearest to the encoder's mean in place of a posterior sample. There is no KL term.

Differs: VQGAN and LlamaGen train codewords by a gradient, and LlamaGen normalises them to length 1. Here they are
moving averages, as in the appendix of the VQ-VAE paper, and a rare codeword begins again at a latent of the batch. So
no codeword is lost in a training of minutes. The VectorQuantizer of diffusers has neither.

Shapes: N images, C dimensions, h x w positions, M = N h w latents, V codewords.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenbridge.base.loading import read_weights

COMMITMENT = 0.25  # weight of the commitment loss (VQ-VAE, VQGAN, LlamaGen)
DECAY = 0.99  # of the moving averages
RARE = 0.1  # of an even share of the latents: a codeword with less begins again
NO_VARIANCE = -30.0  # the least log-variance of diffusers' posteriors
CODEBOOK = "codebook"
FILE = f"{CODEBOOK}.safetensors"  # in the VAE's folder


class VectorQuantizer(nn.Module):
    """Codewords as moving averages of the latents that are nearest to them.

    Buffers:
        codebook [V, C]: the codewords in the VAE's units.
        counts [V]: the moving average of the number of latents in a step that are nearest to each codeword.
    """

    codebook: Tensor
    counts: Tensor

    def __init__(self, codewords: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer(CODEBOOK, torch.zeros(codewords, dimensions))
        self.register_buffer("counts", torch.zeros(codewords))  # all are rare, so the first batch gives all codewords

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step of the codebook's training.

        Args:
            latents: [N, C, h, w].

        Returns:
            The nearest codewords, float32 [N, C, h, w], and the commitment loss: the mean squared distance to them. The
            codewords pass their gradient on to the latents unchanged (straight-through). The loss moves latents only.
        """
        rows = latents.float().movedim(1, -1)  # [N, h, w, C]
        points = rows.detach().flatten(0, 2)  # [M, C]
        self._replace_rare(points)
        indices = torch.cdist(points, self.codebook).argmin(-1)
        found = self.codebook[indices].view_as(rows)
        self._average(points, indices)
        return (rows + (found - rows).detach()).movedim(-1, 1), F.mse_loss(rows, found)

    @property
    def perplexity(self) -> Tensor:
        """The exponential of the entropy of the codewords' shares: V if all are equally frequent."""
        return torch.special.entr(self.counts / self.counts.sum()).sum().exp()

    def _replace_rare(self, points: Tensor) -> None:
        """Begin again with rare codewords, at random points [M, C], as if they had an even share."""
        even = len(points) / len(self.counts)
        rare = self.counts < RARE * even
        chosen = points[torch.randint(len(points), self.counts.shape, device=points.device)]
        self.codebook = torch.where(rare[:, None], chosen, self.codebook)
        self.counts = self.counts.masked_fill(rare, even)

    def _average(self, points: Tensor, indices: Tensor) -> None:
        """Move each codeword towards its points [M, C], so that it stays the weighted mean of all its points so far."""
        counts = indices.bincount(minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.codebook).index_add_(0, indices, points)
        self.counts = self.counts.lerp(counts, 1 - DECAY)
        self.codebook = self.codebook + (1 - DECAY) * (sums - counts[:, None] * self.codebook) / self.counts[:, None]


def remove_variance(vae: AutoencoderKL) -> None:
    """Make every posterior of the VAE as narrow as diffusers can, so that its samples are its mean.

    No gradient reaches these weights while the decoder sees the mean only.
    """
    dimensions = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[dimensions:] = 0
        vae.quant_conv.bias[dimensions:] = NO_VARIANCE


def save_codebook(codebook: Tensor, folder: Path) -> None:
    """Write a codebook [V, C] into the folder of its VAE."""
    save_file({CODEBOOK: codebook.cpu().contiguous()}, folder / FILE)


def load_codebook(folder: Path) -> Tensor | None:
    """Return the codebook [V, C] that was trained with the VAE in the folder; None: the VAE has none.

    Raises:
        LoadError: if its file is damaged.
    """
    return read_weights(folder / FILE)[CODEBOOK] if (folder / FILE).exists() else None
