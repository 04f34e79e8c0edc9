"""A small PatchGAN discriminator, which trains the VAE to reconstruct texture (LDM, VQGAN).

Shapes: N images, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenbridge.config import NORM_GROUPS

SLOPE = 0.2
WEIGHT_MOMENTUM = 0.05


class PatchDiscriminator(nn.Module):
    """A network that scores each patch: images [N, 3, H, W] -> [N, 1, H/4, W/4]; high is real, low reconstructed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(NORM_GROUPS, 2 * width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(2 * width, 3 * width, 3, padding=1),
            nn.GroupNorm(NORM_GROUPS, 3 * width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(3 * width, 1, 3, padding=1),
        )
        self.register_buffer("weight", torch.zeros(()))  # running ratio of the two gradients' norms; 0 before the first

    weight: Tensor

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images)
        return scores.float()


def hinge_loss(discriminator: PatchDiscriminator, real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss on real and fake images; both sets pass through it as one batch."""
    real_scores, fake_scores = discriminator(torch.cat([real, fake])).chunk(2)
    return F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()


def adversarial_gradient(discriminator: PatchDiscriminator, fake: Tensor, like: Tensor) -> Tensor:
    """Return the gradient [N, 3, H, W] at the images ``fake`` towards higher scores, scaled to about ``like``'s norm.

    The scale is LDM's adaptive weight, measured at the image instead of at the decoder's last layer, and averaged over
    steps. The gradient does not push saturated pixels further out.
    """
    images = fake.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(-discriminator(images.clamp(-1, 1)).mean(), images)
    ratio = like.norm() / (gradient.norm() + 1e-8)
    discriminator.weight.lerp_(ratio, WEIGHT_MOMENTUM if discriminator.weight > 0 else 1.0)
    return gradient * discriminator.weight
