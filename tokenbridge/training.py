"""Training of one autoregressive model on tokens (paper Sec. 3.3 and Table 4).

Shapes: N images, S positions, C dimensions.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tokenbridge.config import LauncherConfig, ModelConfig, TrainConfig
from tokenbridge.ema import Ema
from tokenbridge.loop import History, MetricSink, cosine_factor, run_steps
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.optim import build_optimizers, update_weights
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.seeding import EpochOrder, derive_seed
from tokenbridge.training_data import TrainingData

NOT_OF_THE_MODEL = ("train", "pretrained")  # the fields of ModelConfig that say where weights come from


@dataclass(frozen=True)
class Batch:
    """What one step sees; ``draw_batch`` is the only place where its randomness is drawn."""

    tokens: Tensor  # [N, S, C], dimensions in natural order
    labels: Tensor  # [N]; num_classes where the class was dropped
    order: Tensor  # [N, S]
    num_masked: int


def build_model(config: ModelConfig, data: TrainingData, quantizer: DimensionwiseQuantizer) -> TokenBridgeTransformer:
    """A fresh model for the shapes of ``data`` and ``quantizer``."""
    return TokenBridgeTransformer(
        **token_shape(data, quantizer),
        **{name: value for name, value in vars(config).items() if name not in NOT_OF_THE_MODEL},
    )


def token_shape(data: TrainingData, quantizer: DimensionwiseQuantizer) -> dict[str, int]:
    """The sizes of a model that ``data`` and ``quantizer`` decide, by the names of its arguments."""
    dimensions, levels = quantizer.levels.shape
    return {
        "grid_height": data.height,
        "grid_width": data.width,
        "dimensions": dimensions,
        "levels": levels,
        "num_classes": data.num_classes,
    }


def num_masked_positions(uniform: Tensor, positions: int, config: TrainConfig) -> int:
    """ceil(S r), with r from a normal truncated to [mask_ratio_min, 1], by inversion of ``uniform`` (MAR)."""
    normal = Normal(config.mask_ratio_mean, config.mask_ratio_std)
    low, high = normal.cdf(torch.tensor(config.mask_ratio_min)), normal.cdf(torch.tensor(1.0))
    ratio = normal.icdf(low + uniform * (high - low)).clamp(config.mask_ratio_min, 1.0)
    return int((positions * ratio).ceil())


def draw_batch(data: TrainingData, indices: Tensor, config: TrainConfig, device: torch.device) -> Batch:
    """Tokens, class dropout and masks of images ``indices`` [N], from torch's current seed."""
    count, positions = len(indices), data.height * data.width
    tokens = data.draw(indices)
    dropped = torch.rand(count) < config.label_dropout
    labels = torch.where(dropped, data.num_classes, data.labels[indices])
    order = torch.rand(count, positions).argsort(dim=1)
    num_masked = num_masked_positions(torch.rand(()), positions, config)
    return Batch(tokens.to(device), labels.to(device), order.to(device), num_masked)


def batch_loss(model: nn.Module, quantizer: DimensionwiseQuantizer, batch: Batch) -> Tensor:
    """Cross-entropy per dimension, in nats, of one batch."""
    values, targets = quantizer.decode(batch.tokens), quantizer.to_head_order(batch.tokens)
    loss: Tensor = model(values, targets, batch.labels, batch.order, batch.num_masked)
    return loss


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """The linear layers inside blocks, which Muon trains when it is chosen.

    Differs: paper and released code train everything with AdamW, as the ImageNet experiments here do; in a
    training of minutes Muon gets further.
    """
    return parameter.ndim == 2 and any(part in name for part in ("encoder.", "decoder.", "blocks."))


def train(
    config: ModelConfig,
    data: TrainingData,
    quantizer: DimensionwiseQuantizer,
    *,
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
    torch.manual_seed(derive_seed(recipe.seed, "init"))
    model = build_model(config, data, quantizer).to(device).train()
    quantizer = quantizer.to(device)
    ema = Ema(model, recipe.ema_decay, recipe.ema_warmup)
    optimizers = build_optimizers(
        model,
        kind=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        muon_learning_rate=recipe.muon_learning_rate,
        weight_decay=recipe.weight_decay,
        betas=(recipe.beta1, recipe.beta2),
        is_matrix=is_matrix,
    )
    order = EpochOrder(len(data), recipe.batch_size, recipe.seed)
    total, warmup = order.steps(recipe.epochs), round(recipe.warmup_epochs * len(data) / recipe.batch_size)

    def step(index: int) -> dict[str, Tensor]:
        batch = draw_batch(data, order.indices(index), recipe, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = batch_loss(model, quantizer, batch)
        loss.backward()
        factor = cosine_factor(index, total, warmup)
        norm = update_weights(
            loss, model, list(optimizers.values()), factor=factor, clip_norm=recipe.clip_norm, step=index
        )
        ema.update(model)
        return {"loss": loss, "gradient_norm": norm, "learning_rate": torch.tensor(factor * recipe.learning_rate)}

    history = run_steps(
        label="train",
        state={"model": model, "ema": ema, **optimizers},
        step_fn=step,
        total_steps=total,
        images_per_step=recipe.batch_size,
        seed=recipe.seed,
        checkpoint=checkpoint,
        launcher=launcher,
        tracker=tracker,
    )
    return ema.model, history
