"""Training of one autoregressive model on moments (paper Sec. 3.3 and Table 4).

Shapes: N images, S positions, C dimensions.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tokenbridge.config import LauncherConfig, ModelConfig, TrainConfig
from tokenbridge.ema import Ema
from tokenbridge.loop import History, MetricSink, apply_gradients, cosine_rate, run_steps
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.moments import Moments, sample_posterior
from tokenbridge.quantizer import DimensionwiseQuantizer, to_sequence
from tokenbridge.seeding import EpochOrder, derive_seed


@dataclass(frozen=True)
class Batch:
    """What one step sees; ``Batch.draw`` is the only place where its randomness is drawn."""

    latents: Tensor  # [N, C, h, w], normalised
    labels: Tensor  # [N]; num_classes where the class was dropped
    order: Tensor  # [N, S]
    num_masked: int


def build_model(config: ModelConfig, moments: Moments, quantizer: DimensionwiseQuantizer) -> TokenBridgeTransformer:
    """A fresh model for the shapes of ``moments`` and ``quantizer``."""
    return TokenBridgeTransformer(
        grid_height=moments.height,
        grid_width=moments.width,
        dimensions=moments.dimensions,
        levels=quantizer.levels.shape[1],
        num_classes=moments.num_classes,
        **{name: value for name, value in vars(config).items() if name != "train"},
    )


def num_masked_positions(uniform: Tensor, positions: int, config: TrainConfig) -> int:
    """ceil(S r), with r from a normal truncated to [mask_ratio_min, 1], by inversion of ``uniform`` (MAR)."""
    normal = Normal(config.mask_ratio_mean, config.mask_ratio_std)
    low, high = normal.cdf(torch.tensor(config.mask_ratio_min)), normal.cdf(torch.tensor(1.0))
    ratio = normal.icdf(low + uniform * (high - low)).clamp(config.mask_ratio_min, 1.0)
    return int((positions * ratio).ceil())


def draw_batch(
    moments: Moments, quantizer: DimensionwiseQuantizer, indices: Tensor, config: TrainConfig, device: torch.device
) -> Batch:
    """Posterior samples, mirrored at random, class dropout and masks, from torch's current seed."""
    count, positions = len(indices), moments.height * moments.width
    posterior = moments.read(indices, torch.randint(2, (count,)))
    latents = sample_posterior(posterior, torch.randn_like(posterior[:, : moments.dimensions]))
    dropped = torch.rand(count) < config.label_dropout
    labels = torch.where(dropped, moments.num_classes, moments.labels[indices])
    order = torch.rand(count, positions).argsort(dim=1)
    num_masked = num_masked_positions(torch.rand(()), positions, config)
    return Batch(quantizer.normalize(latents.to(device)), labels.to(device), order.to(device), num_masked)


def batch_loss(model: nn.Module, quantizer: DimensionwiseQuantizer, batch: Batch) -> Tensor:
    """Cross-entropy per dimension, in nats, of one batch."""
    tokens = quantizer.encode(to_sequence(batch.latents))
    loss: Tensor = model(
        quantizer.decode(tokens), quantizer.to_head_order(tokens), batch.labels, batch.order, batch.num_masked
    )
    return loss


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and tables, none on biases and norms (MAR)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (plain if parameter.ndim == 1 or name.endswith("bias") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def train(
    config: ModelConfig,
    moments: Moments,
    quantizer: DimensionwiseQuantizer,
    *,
    seed: int,
    checkpoint: Path,
    launcher: LauncherConfig,
    tracker: MetricSink,
    device: torch.device,
) -> tuple[TokenBridgeTransformer, History]:
    """Train a model, or go on from ``checkpoint``; the averaged (EMA) model and its loss history.

    Raises:
        NonFiniteError: before a NaN or infinite loss or gradient reaches the weights.
    """
    recipe = config.train
    torch.manual_seed(derive_seed(seed, "init"))
    model = build_model(config, moments, quantizer).to(device).train()
    quantizer = quantizer.to(device)
    ema = Ema(model, recipe.ema_decay, recipe.ema_warmup)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2)
    )
    order = EpochOrder(len(moments), recipe.batch_size, seed)
    total, warmup = order.steps(recipe.epochs), round(recipe.warmup_epochs * len(moments) / recipe.batch_size)

    def step(index: int) -> dict[str, Tensor]:
        batch = draw_batch(moments, quantizer, order.indices(index), recipe, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = batch_loss(model, quantizer, batch)
        rate = cosine_rate(index, total, warmup, recipe.learning_rate)
        norm = apply_gradients(loss, model, optimizer, rate, recipe.clip_norm, index)
        ema.update(model)
        return {"loss": loss, "gradient_norm": norm, "learning_rate": torch.tensor(rate)}

    history = run_steps(
        label="train",
        state={"model": model, "ema": ema, "optimizer": optimizer},
        step_fn=step,
        total_steps=total,
        images_per_step=recipe.batch_size,
        seed=seed,
        checkpoint=checkpoint,
        launcher=launcher,
        tracker=tracker,
    )
    return ema.model, history
