"""Training of one autoregressive model on tokens (paper Sec. 3.3 and Table 4)."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor, nn

from tokenbridge.base.checkpoints import Checkpoints, State
from tokenbridge.base.device import autocast
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes
from tokenbridge.base.protocols import MetricSink, Stop, never
from tokenbridge.base.seeding import EpochOrder, derive_seed, generator
from tokenbridge.config import LauncherConfig, ModelConfig
from tokenbridge.engine.divergence import BadStep, LossWatch, keep_bad_step
from tokenbridge.engine.ema import Ema
from tokenbridge.engine.loop import Evaluations, History, cosine_factor, run_steps
from tokenbridge.engine.optim import NonFiniteError, build_optimizers, update_weights
from tokenbridge.model import AutoregressiveModel, make_model
from tokenbridge.tokenizer.latents import Quantizer
from tokenbridge.training.batches import Batch, batch_loss, draw_batch
from tokenbridge.training.datasets import Prefetcher, TrainingData
from tokenbridge.training.parallel import distribute, evaluating, gather_full, gradients_stay
from tokenbridge.training.parts import check_processes, part_sizes
from tokenbridge.training.validation import Validation

NOT_MODEL_ARGUMENTS = ("train", "pretrained", "trunk")  # fields of ModelConfig that are not about sizes
CHECKPOINTS = "checkpoints"  # folder of a training's checkpoints
BAD_STEP = "bad-step"  # folder of a step whose loss or gradient is not finite
SAMPLES = "samples"  # folder of the grids of samples that are drawn during the training

DrawGrid = Callable[[AutoregressiveModel], Image]


class Trained(NamedTuple):
    """The result of a training."""

    model: AutoregressiveModel  # with the averaged (EMA) weights
    history: History  # rows of the training loss
    evaluations: History  # rows of the validation loss


def build_model(config: ModelConfig, data: TrainingData, quantizer: Quantizer) -> AutoregressiveModel:
    """Return a model with fresh weights for the shapes of ``data`` and ``quantizer``."""
    return make_model(
        config.trunk,
        **token_shape(data, quantizer),
        **{name: value for name, value in vars(config).items() if name not in NOT_MODEL_ARGUMENTS},
    )


def token_shape(data: TrainingData, quantizer: Quantizer) -> dict[str, int | None]:
    """Return argument name -> size, for the sizes of a model that ``data`` and ``quantizer`` decide."""
    dimensions, slots = quantizer.config.dimensions, quantizer.slots
    return {
        "grid_height": data.height,
        "grid_width": data.width,
        "dimensions": dimensions,
        "levels": quantizer.classes,
        "slots": None if slots == dimensions else slots,
        "num_classes": data.num_classes,
    }


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether the parameter is a matrix of a block's linear layers. Muon trains these when it is chosen.

    Differs: paper and released code train everything with AdamW, and so do the ImageNet experiments here. In a training
    of minutes, Muon makes more progress. Not in the draft: Muon's updates are computed for many matrices at once.
    """
    return parameter.ndim == 2 and name.startswith(("encoder.", "decoder.", "head.blocks."))


def train(
    config: ModelConfig,
    data: TrainingData,
    validation_data: TrainingData,
    quantizer: Quantizer,
    *,
    folder: Path,
    launcher: LauncherConfig,
    tracker: MetricSink,
    device: torch.device,
    processes: Processes = SINGLE_PROCESS,
    stop: Stop = never,
    draw_grid: DrawGrid | None = None,
) -> Trained:
    """Train a model, or continue from ``folder``/checkpoints.

    Only rank 0's return value is meaningful. ``config.train.precision`` must be resolved: bf16 or fp32.

    Args:
        draw_grid: draws the picture of samples that is logged at each evaluation; None: no pictures.

    Raises:
        ConfigError: if the batch cannot be divided among the processes, or if fsdp is combined with Muon.
        NonFiniteError: if the loss or a gradient is NaN or infinite. It is raised before the weights change; the
            message names the folder in which the step is kept.
        InterruptedTrainingError: if ``stop`` became true; a checkpoint has been saved.
    """
    recipe = config.train
    check_processes(recipe, launcher, processes.world)
    trainer = Trainer(config, data, quantizer.to(device), folder, launcher, device, processes)
    validation = Validation(validation_data, quantizer, processes)

    def evaluate(step: int) -> dict[str, float]:
        if draw_grid:
            trainer.log_grid(draw_grid, step, tracker)
        return {"validation_loss": trainer.validation_loss(validation)}

    evaluations = Evaluations(evaluate, recipe.evaluations)
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
        evaluations=evaluations,
    )
    return Trained(trainer.averaged_model(), history, evaluations.rows)


class Trainer:
    """The steps of one training. Everything that a step changes is in ``state``.

    The number of processes decides only which part of a batch this process works on.
    """

    def __init__(
        self,
        config: ModelConfig,
        data: TrainingData,
        quantizer: Quantizer,
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
            weight_decay=recipe.weight_decay,
            betas=(recipe.beta1, recipe.beta2),
            is_matrix=is_matrix,
        )
        self.watch = LossWatch()
        self.order = EpochOrder(len(data), recipe.batch_size, recipe.seed)
        self.total = self.order.steps(recipe.epochs)
        self.warmup = round(recipe.warmup_epochs * len(data) / recipe.batch_size)
        self.batches = Prefetcher(self.draw, self.total)

    @property
    def state(self) -> State:
        return {"model": self.model, "ema": self.ema, "watch": self.watch, **self.optimizers}

    def draw(self, step: int) -> Batch:
        """Draw this process's part of the batch."""
        part = self.processes.share(self.recipe.batch_size)
        random = generator(self.recipe.seed, "train", step)
        return draw_batch(self.data, self.order.indices(step), self.recipe, random, self.model, part)

    def step(self, step: int) -> dict[str, Tensor]:
        batch = self.batches.take(step).to(self.device)
        torch.manual_seed(derive_seed(self.recipe.seed, "dropout", step, self.processes.rank))
        own_loss = self.accumulate_gradients(batch)
        share = len(batch.labels) / self.recipe.batch_size
        loss = self.processes.total(share * own_loss)
        factor = cosine_factor(step, self.total, self.warmup)
        each = list(self.optimizers.values())
        try:
            norm = update_weights(
                loss,
                self.model,
                each,
                factor=factor,
                clip_norm=self.recipe.clip_norm,
                step=step,
                apart=self.model.draft,
            )
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
        """Compute this process's part of the gradients of the whole batch's mean loss; return the part's mean loss."""
        parts = batch.split(part_sizes(self.recipe, self.launcher, self.processes.rank, self.processes.world))
        losses = []
        for number, part in enumerate(parts):
            with nullcontext() if number == len(parts) - 1 else gradients_stay(self.parallel):
                with autocast(self.device, self.recipe.precision):
                    loss = batch_loss(self.parallel, self.quantizer, part, self.recipe.head_share)
                # gradients are averaged over processes: this weight makes the result the mean over images
                weight = len(part.labels) * self.processes.world / self.recipe.batch_size
                (loss if weight == 1 else loss * weight).backward()
            losses.append(loss.detach() * (len(part.labels) / len(batch.labels)))
        return torch.stack(losses).sum()

    def validation_loss(self, validation: Validation) -> float:
        """Return the validation loss of the averaged weights. The measurement does not change the training's bits."""
        with self.ema.swapped_into(self.model), evaluating(self.model), autocast(self.device, self.recipe.precision):
            return validation.loss(self.model)

    def log_grid(self, draw_grid: DrawGrid, step: int, tracker: MetricSink) -> None:
        """Draw a picture of samples with the averaged weights, and log it. Only the first process draws and logs."""
        model = self.averaged_model()
        if self.processes.first:
            path = self.folder / SAMPLES / f"step-{step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_grid(model).save(path)
            tracker.artifact(path, SAMPLES)

    def averaged_model(self) -> AutoregressiveModel:
        """Return a model with the averaged weights, ready for use. Every process must call this.

        Only the first process's return value is meaningful; the other processes send their shards.
        """
        averages = gather_full(self.ema.averages, self.processes)
        if not self.processes.first:
            return self.model
        model = build_model(self.config, self.data, self.quantizer)
        model.load_state_dict(averages)
        return model.to(self.device).eval().requires_grad_(False)

    def _keep(self, step: int, batch: Batch, own_loss: Tensor) -> str:
        images = self.order.indices(step)[self.processes.share(self.recipe.batch_size)]
        settings = {"seed": self.recipe.seed, "precision": self.recipe.precision, "model": asdict(self.config)}
        bad = BadStep(step, float(own_loss), images.tolist(), dict(vars(batch)), settings)
        if self.processes.first:
            self.quantizer.save_pretrained(self.folder / BAD_STEP / "quantizer")
        return keep_bad_step(self.folder / BAD_STEP, bad, self.state, self.processes)
