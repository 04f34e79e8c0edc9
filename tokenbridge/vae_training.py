"""Training of the small VAE (a diffusers AutoencoderKL).

Shapes: N images, H x W pixels, C dimensions, h x w positions.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tokenbridge.config import LauncherConfig, VaeConfig
from tokenbridge.ema import Ema
from tokenbridge.loop import History, MetricSink, apply_gradients, cosine_rate, run_steps
from tokenbridge.seeding import EpochOrder, derive_seed
from tokenbridge.vae import to_unit_range

WARMUP_STEPS = 50
CLIP_NORM = 1.0
EMA_DECAY = 0.995


def build_vae(config: VaeConfig, image_size: int) -> AutoencoderKL:
    """A fresh AutoencoderKL: one resolution for each of ``block_widths``, no attention."""
    depth = len(config.block_widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=config.dimensions,
        block_out_channels=tuple(config.block_widths),
        layers_per_block=config.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        norm_num_groups=16,
        sample_size=image_size,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # the quantizer normalises
        force_upcast=False,
    )


def train_vae(
    config: VaeConfig,
    images: np.ndarray,
    *,
    seed: int,
    checkpoint: Path,
    launcher: LauncherConfig,
    tracker: MetricSink,
    device: torch.device,
) -> tuple[AutoencoderKL, History]:
    """Train on uint8 images [N, 3, H, W], or go on from ``checkpoint``; the averaged VAE and its loss history."""
    torch.manual_seed(derive_seed(seed, "init"))
    vae = build_vae(config, images.shape[-1]).to(device).train()
    ema = Ema(vae, EMA_DECAY, warmup=True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    order = EpochOrder(len(images), config.batch_size, seed)
    total = order.steps(config.epochs)

    def step(index: int) -> dict[str, Tensor]:
        batch = to_unit_range(images[order.indices(index).numpy()]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            posterior = vae.encode(batch).latent_dist
            output = vae.decode(posterior.sample()).sample
        difference = output.float() - batch
        terms = {
            "l1": difference.abs().mean(),
            "mse": difference.square().mean(),
            "kl": posterior.kl().mean(),
        }
        loss = sum(weight * terms[name] for name, weight in vars(config.loss).items())
        assert isinstance(loss, Tensor)
        rate = cosine_rate(index, total, min(WARMUP_STEPS, total), config.learning_rate)
        norm = apply_gradients(loss, vae, optimizer, rate, CLIP_NORM, index)
        ema.update(vae)
        return {**terms, "gradient_norm": norm}

    history = run_steps(
        label="vae",
        state={"vae": vae, "ema": ema, "optimizer": optimizer},
        step_fn=step,
        total_steps=total,
        images_per_step=config.batch_size,
        seed=seed,
        checkpoint=checkpoint,
        launcher=launcher,
        tracker=tracker,
    )
    return ema.model, history
