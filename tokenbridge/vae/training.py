"""Training of the small VAE (a diffusers AutoencoderKL): L1, MSE, KL or a codebook, and a discriminator for texture.

Shapes: N images, H x W pixels, C dimensions, h x w positions.
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from tokenbridge.base.arrays import LabelledArrays
from tokenbridge.base.checkpoints import Checkpoints, State
from tokenbridge.base.device import autocast
from tokenbridge.base.protocols import MetricSink
from tokenbridge.base.seeding import EpochOrder, derive_seed
from tokenbridge.config import NORM_GROUPS, LauncherConfig, VaeConfig
from tokenbridge.engine.ema import Ema
from tokenbridge.engine.loop import History, cosine_factor, run_steps
from tokenbridge.engine.optim import build_optimizers, update_weights
from tokenbridge.vae.autoencoder import to_unit_range
from tokenbridge.vae.discriminator import PatchDiscriminator, adversarial_gradient, hinge_loss
from tokenbridge.vae.vector_quantization import COMMITMENT, VectorQuantizer, remove_variance

WARMUP_STEPS = 50
CLIP_NORM = 1.0
EMA_DECAY = 0.98
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
DISCRIMINATOR_BETAS = (0.5, 0.95)
# the least shares of the peak rates, which hold to the end: the discriminator trains texture until the last step
RATE_FLOOR = 0.02
DISCRIMINATOR_RATE_FLOOR = 0.1
RAMP = 0.1  # share of the training in which the adversarial weight grows to its full value


def build_vae(config: VaeConfig, image_size: int) -> AutoencoderKL:
    """Return an AutoencoderKL with fresh weights: one resolution for each of ``block_widths``, no attention.

    With ``codewords``, its posteriors have no variance.
    """
    depth = len(config.block_widths)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=config.dimensions,
        block_out_channels=tuple(config.block_widths),
        layers_per_block=config.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        norm_num_groups=NORM_GROUPS,
        sample_size=image_size,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # the quantizer normalises
        force_upcast=False,
    )
    if config.codewords is not None:
        remove_variance(vae)
    return vae


def is_kernel(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon trains the parameter: convolution kernels, but not those at the images and the latents."""
    return parameter.ndim == 4 and not any(part in name for part in ("conv_in", "conv_out", "quant"))


def reconstruction_loss(output: Tensor, images: Tensor, config: VaeConfig) -> Tensor:
    """Return the weighted L1 and MSE. Values beyond black or white are not penalised where the image has that value."""
    clamped = torch.where(images <= -1, output.clamp(min=-1), output)
    clamped = torch.where(images >= 1, clamped.clamp(max=1), clamped)
    difference = clamped - images
    return config.loss.l1 * difference.abs().mean() + config.loss.mse * difference.square().mean()


@dataclass
class VaeTrainer:
    """The steps of the VAE and of its discriminator. Everything that a step changes is in ``state``."""

    config: VaeConfig
    vae: AutoencoderKL
    total: int
    device: torch.device

    def __post_init__(self) -> None:
        config = self.config
        self.ema = Ema(self.vae, EMA_DECAY, warmup=True)
        self.quantizer: VectorQuantizer | None = None
        if config.codewords is not None:
            self.quantizer = VectorQuantizer(config.codewords, config.dimensions).to(self.device)
        self.optimizers = build_optimizers(
            self.vae,
            kind=config.optimizer,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            weight_decay=WEIGHT_DECAY,
            betas=BETAS,
            is_matrix=is_kernel,
        )
        self.discriminator = PatchDiscriminator(config.discriminator.width).to(self.device)
        self.discriminator_optimizers = build_optimizers(
            self.discriminator,
            learning_rate=config.discriminator.learning_rate,
            weight_decay=WEIGHT_DECAY,
            betas=DISCRIMINATOR_BETAS,
        )

    @property
    def state(self) -> State:
        optimizers = {f"vae {name}": optimizer for name, optimizer in self.optimizers.items()}
        optimizers |= {f"discriminator {name}": each for name, each in self.discriminator_optimizers.items()}
        modules = {"vae": self.vae, "ema": self.ema, "discriminator": self.discriminator}
        return modules | optimizers | ({} if self.quantizer is None else {"quantizer": self.quantizer})

    def adversarial_weight(self, step: int) -> float:
        """Return 0 until ``discriminator.start``, then a weight that grows to ``loss.adversarial``."""
        grown = (step / self.total - self.config.discriminator.start) / RAMP
        return self.config.loss.adversarial * min(1.0, max(0.0, grown))

    def step(self, images: Tensor, index: int) -> dict[str, Tensor]:
        """Train on images [N, 3, H, W] in [-1, 1]."""
        factor = max(RATE_FLOOR, cosine_factor(index, self.total, min(WARMUP_STEPS, self.total)))
        with self._autocast():
            posterior = self.vae.encode(images).latent_dist
        latents, penalty, facts = self._through_bottleneck(posterior)
        with self._autocast():
            output = self.vae.decode(latents).sample.float()
        leaf = output.detach().requires_grad_()
        loss = reconstruction_loss(leaf, images, self.config)
        (gradient,) = torch.autograd.grad(loss, leaf)
        metrics = {"reconstruction_loss": loss, **facts}
        weight = self.adversarial_weight(index)
        if weight > 0:
            with self._autocast():
                gradient = gradient + weight * adversarial_gradient(self.discriminator, leaf, like=gradient)
                metrics["discriminator_loss"] = self._train_discriminator(images, output.detach(), factor, index)
        torch.autograd.backward([output, penalty], [gradient, None])
        metrics["gradient_norm"] = update_weights(
            loss + penalty, self.vae, list(self.optimizers.values()), factor=factor, clip_norm=CLIP_NORM, step=index
        )
        self.ema.update(self.vae)
        return metrics

    def _through_bottleneck(self, posterior: DiagonalGaussianDistribution) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the decoder's input [N, C, h, w], its weighted loss, and metrics."""
        if self.quantizer is None:
            sample, kl = posterior.sample(), posterior.kl().mean()
            return sample, self.config.loss.kl * kl, {"kl": kl}
        codewords, commitment = self.quantizer(posterior.mode())
        metrics = {"commitment_loss": commitment, "perplexity": self.quantizer.perplexity}
        return codewords, COMMITMENT * commitment, metrics

    def _train_discriminator(self, real: Tensor, fake: Tensor, factor: float, index: int) -> Tensor:
        loss = hinge_loss(self.discriminator, real, fake.clamp(-1, 1))
        loss.backward()
        update_weights(
            loss,
            self.discriminator,
            list(self.discriminator_optimizers.values()),
            factor=max(factor, DISCRIMINATOR_RATE_FLOOR),
            clip_norm=CLIP_NORM,
            step=index,
        )
        return loss

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.config.precision)


def train_vae(
    config: VaeConfig,
    images: LabelledArrays,
    *,
    seed: int,
    checkpoints: Checkpoints,
    launcher: LauncherConfig,
    tracker: MetricSink,
    device: torch.device,
) -> tuple[AutoencoderKL, Tensor | None, History]:
    """Train on uint8 images [3, H, W], or continue from ``checkpoints``.

    ``config.precision`` must be resolved: bf16 or fp32.

    Returns:
        The VAE with averaged weights, its codebook [V, C] if ``config.codewords`` asks for one, and its loss history.
    """
    torch.manual_seed(derive_seed(seed, "init"))
    order = EpochOrder(len(images), config.batch_size, seed)
    vae = build_vae(config, images.row_shape[-1]).to(device).train()
    trainer = VaeTrainer(config, vae, order.steps(config.epochs), device)

    def step(index: int) -> dict[str, Tensor]:
        return trainer.step(to_unit_range(images.read(order.indices(index).numpy())).to(device), index)

    history = run_steps(
        label="vae",
        state=trainer.state,
        step_fn=step,
        total_steps=trainer.total,
        images_per_step=config.batch_size,
        seed=seed,
        checkpoints=checkpoints,
        launcher=launcher,
        tracker=tracker,
        precision=config.precision,
    )
    trainer.ema.apply(vae)
    codebook = None if trainer.quantizer is None else trainer.quantizer.codebook
    return vae.eval().requires_grad_(False), codebook, history
