"""Training of one autoregressive model on tokens (paper Sec. 3.3 and Table 4).

Shapes: N images, S positions, C dimensions.
"""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tokenbridge.checkpoints import Checkpoints, State
from tokenbridge.config import FSDP, LauncherConfig, ModelConfig, TrainConfig, require
from tokenbridge.device import autocast
from tokenbridge.ema import Ema
from tokenbridge.loop import History, cosine_factor, run_steps
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.numerics import BadStep, LossWatch, keep_bad_step
from tokenbridge.optim import NonFiniteError, build_optimizers, update_weights
from tokenbridge.parallel import distribute, gradients_stay, whole
from tokenbridge.processes import ALONE, Processes
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.seeding import EpochOrder, derive_seed, generator
from tokenbridge.training_data import ALL, Ahead, TrainingData
from tokenbridge.watching import MetricSink, Stop, never

NOT_OF_THE_MODEL = ("train", "pretrained")  # the fields of ModelConfig that say where weights come from
CHECKPOINTS = "checkpoints"  # folder of a training's checkpoints
BAD_STEP = "bad-step"  # folder of a step whose loss or gradient is not finite


@dataclass(frozen=True)
class Batch:
    """What one step sees; ``draw_batch`` is the only place where its randomness is drawn."""

    tokens: Tensor  # [N, S, C], dimensions in natural order
    labels: Tensor  # [N]; num_classes where the class was dropped
    order: Tensor  # [N, S]
    num_masked: int  # one number for the whole batch, as in MAR

    def to(self, device: torch.device) -> "Batch":
        tokens, labels, order = (each.to(device, non_blocking=True) for each in (self.tokens, self.labels, self.order))
        return Batch(tokens, labels, order, self.num_masked)

    def split(self, count: int) -> list["Batch"]:
        """``count`` parts of it, one after the other."""
        tokens, labels, order = (each.tensor_split(count) for each in (self.tokens, self.labels, self.order))
        return [Batch(*part, self.num_masked) for part in zip(tokens, labels, order, strict=True)]


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


def draw_batch(
    data: TrainingData, indices: Tensor, config: TrainConfig, random: torch.Generator, part: slice = ALL
) -> Batch:
    """Tokens, class dropout and masks of images ``indices`` [N]; with ``part``, those of that part of them.

    Whatever the part, all is drawn for the whole batch from ``random``: what an image gets depends on its place there.
    """
    count, positions = len(indices), data.height * data.width
    tokens = data.draw(indices, random, part)
    dropped = torch.rand(count, generator=random) < config.label_dropout
    labels = torch.where(dropped, data.num_classes, data.labels[indices])
    order = torch.rand(count, positions, generator=random)[part].argsort(dim=1)
    num_masked = num_masked_positions(torch.rand((), generator=random), positions, config)
    return Batch(tokens, labels[part], order, num_masked)


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
    folder: Path,
    launcher: LauncherConfig,
    tracker: MetricSink,
    device: torch.device,
    processes: Processes = ALONE,
    stop: Stop = never,
) -> tuple[TokenBridgeTransformer, History]:
    """Train a model, or go on from ``folder``/checkpoints; the averaged (EMA) model and its loss history.

    Only rank 0's return value is meaningful. ``config.train.precision`` must be resolved: bf16 or fp32.

    Raises:
        ConfigError: if batch and processes do not fit together.
        NonFiniteError: before a NaN or infinite loss or gradient reaches the weights; names where the step is kept.
        InterruptedTrainingError: when ``stop`` became true; a checkpoint has been saved.
    """
    recipe = config.train
    check_processes(recipe, launcher, processes.world)
    trainer = Trainer(config, data, quantizer.to(device), folder, launcher, device, processes)
    history = run_steps(
        label="train",
        state=trainer.state,
        step_fn=trainer.step,
        total_steps=trainer.total,
        images_per_step=recipe.batch_size,
        seed=recipe.seed,
        checkpoints=Checkpoints(
            folder / CHECKPOINTS, processes, keep=launcher.keep_checkpoints, keep_every=launcher.keep_every
        ),
        launcher=launcher,
        tracker=tracker,
        precision=recipe.precision,
        stop=stop,
    )
    return trainer.averaged_model(), history


def check_processes(recipe: TrainConfig, launcher: LauncherConfig, world: int) -> None:
    """What must hold between recipe and processes before anything starts.

    Raises:
        ConfigError: saying what to change.
    """
    parts = world * launcher.accumulation
    require(
        recipe.batch_size >= parts,
        f"train.batch_size is {recipe.batch_size}, and {world} processes with launcher.accumulation="
        f"{launcher.accumulation} make {parts} parts of it: use fewer",
    )
    require(
        launcher.strategy != FSDP or world == 1 or recipe.optimizer != "muon",
        "launcher.strategy=fsdp shards the matrices that train.optimizer=muon needs whole: use adamw, or ddp",
    )


class Trainer:
    """The steps of one training; what changes with them is in ``state``.

    Nothing here depends on the number of processes but which part of a batch this one works on.
    """

    def __init__(
        self,
        config: ModelConfig,
        data: TrainingData,
        quantizer: DimensionwiseQuantizer,
        folder: Path,
        launcher: LauncherConfig,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.config, self.data, self.quantizer, self.folder = config, data, quantizer, folder
        self.launcher, self.device, self.processes = launcher, device, processes
        recipe = self.recipe = config.train
        torch.manual_seed(derive_seed(recipe.seed, "init"))
        self.model = build_model(config, data, quantizer).to(device).train()
        self.parallel = distribute(self.model, launcher, recipe.precision, processes)
        self.ema = Ema(self.model, recipe.ema_decay, recipe.ema_warmup)
        self.optimizers = build_optimizers(
            self.model,
            kind=recipe.optimizer,
            learning_rate=recipe.learning_rate,
            muon_learning_rate=recipe.muon_learning_rate,
            precision=recipe.precision,
            weight_decay=recipe.weight_decay,
            betas=(recipe.beta1, recipe.beta2),
            is_matrix=is_matrix,
        )
        self.watch = LossWatch()
        self.order = EpochOrder(len(data), recipe.batch_size, recipe.seed)
        self.total = self.order.steps(recipe.epochs)
        self.warmup = round(recipe.warmup_epochs * len(data) / recipe.batch_size)
        self.batches = Ahead(self.draw, self.total)

    @property
    def state(self) -> State:
        return {"model": self.model, "ema": self.ema, "watch": self.watch, **self.optimizers}

    def draw(self, step: int) -> Batch:
        """This process's part of the batch."""
        part = self.processes.share(self.recipe.batch_size)
        random = generator(self.recipe.seed, "train", step)
        return draw_batch(self.data, self.order.indices(step), self.recipe, random, part)

    def step(self, step: int) -> dict[str, Tensor]:
        batch = self.batches.take(step).to(self.device)
        torch.manual_seed(derive_seed(self.recipe.seed, "dropout", step, self.processes.rank))
        own_loss = self.accumulate_gradients(batch)
        share = len(batch.labels) / self.recipe.batch_size
        loss = self.processes.total(share * own_loss)
        factor = cosine_factor(step, self.total, self.warmup)
        each = list(self.optimizers.values())
        try:
            norm = update_weights(loss, self.model, each, factor=factor, clip_norm=self.recipe.clip_norm, step=step)
        except NonFiniteError as error:
            raise NonFiniteError(error.name, error.value, step, self._keep(step, batch, own_loss)) from None
        self.ema.update(self.model)
        return {
            "loss": loss,
            "gradient_norm": norm,
            "gradient_norm_max": norm,
            "loss_spikes": self.watch.is_spike(loss),
            "learning_rate": torch.tensor(factor * self.recipe.learning_rate),
        }

    def accumulate_gradients(self, batch: Batch) -> Tensor:
        """Gradients of the whole batch's mean loss, from this process's part; returns that part's mean loss."""
        parts = batch.split(self.launcher.accumulation)
        losses = []
        for number, part in enumerate(parts):
            with nullcontext() if number == len(parts) - 1 else gradients_stay(self.parallel):
                with autocast(self.device, self.recipe.precision):
                    loss = batch_loss(self.parallel, self.quantizer, part)
                # gradients come out as the mean over processes: this makes it the mean over images
                weight = len(part.labels) * self.processes.world / self.recipe.batch_size
                (loss if weight == 1 else loss * weight).backward()
            losses.append(loss.detach() * (len(part.labels) / len(batch.labels)))
        return torch.stack(losses).sum()

    def averaged_model(self) -> TokenBridgeTransformer:
        """The model with the averaged weights, for use: in the first process. The others only give their parts."""
        averages = whole(self.ema.averages)
        if not self.processes.first:
            return self.model
        model = build_model(self.config, self.data, self.quantizer)
        model.load_state_dict(averages)
        return model.to(self.device).eval().requires_grad_(False)

    def _keep(self, step: int, batch: Batch, own_loss: Tensor) -> str:
        images = self.order.indices(step)[self.processes.share(self.recipe.batch_size)]
        tensors = {"tokens": batch.tokens, "labels": batch.labels, "order": batch.order}
        settings = {"num_masked": batch.num_masked, "seed": self.recipe.seed, "precision": self.recipe.precision}
        bad = BadStep(step, float(own_loss), images.tolist(), tensors, settings | {"model": asdict(self.config)})
        if self.processes.first:
            self.quantizer.save_pretrained(self.folder / BAD_STEP / "quantizer")
        return keep_bad_step(self.folder / BAD_STEP, bad, self.state, self.processes)
