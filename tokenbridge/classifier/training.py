"""Training of the small classifier that measures class accuracy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenbridge.base.arrays import LabelledArrays
from tokenbridge.base.checkpoints import Checkpoints
from tokenbridge.base.device import autocast
from tokenbridge.base.protocols import MetricSink
from tokenbridge.base.seeding import EpochOrder, derive_seed
from tokenbridge.classifier.network import ImageClassifier, channels_last
from tokenbridge.config import ClassifierConfig, LauncherConfig
from tokenbridge.engine.loop import History, cosine_factor, run_steps
from tokenbridge.engine.optim import build_optimizers, update_weights

MAX_SHIFT = 1  # the most pixels by which training images are moved, in each direction
WARMUP_SHARE = 0.2  # share of the steps before the learning rate peaks
BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0


def shift_images(images: Tensor) -> Tensor:
    """Move each uint8 image [B, 3, H, W] by up to MAX_SHIFT pixels. Copies of its edge fill the free pixels."""
    count, _, height, width = images.shape
    padded = F.pad(images.float(), (MAX_SHIFT,) * 4, mode="replicate").to(torch.uint8)
    down, right = torch.randint(0, 2 * MAX_SHIFT + 1, (2, count, 1))
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


def train_classifier(
    images: LabelledArrays,
    *,
    label_names: list[str],
    config: ClassifierConfig,
    seed: int,
    checkpoints: Checkpoints,
    launcher: LauncherConfig,
    tracker: MetricSink,
    device: torch.device,
) -> tuple[ImageClassifier, History]:
    """Train on uint8 images [3, H, W] and their labels, or continue from ``checkpoints``.

    ``config.precision`` must be resolved: bf16 or fp32.

    Returns:
        The trained classifier, and its loss history.
    """
    torch.manual_seed(derive_seed(seed, "classifier", "weights"))
    model = channels_last(ImageClassifier(width=config.width, label_names=label_names)).to(device)
    optimizers = build_optimizers(
        model,
        learning_rate=config.learning_rate,
        weight_decay=WEIGHT_DECAY,
        betas=BETAS,
    )
    order = EpochOrder(len(images), config.batch_size, seed)
    total = order.steps(config.epochs)

    def step_fn(step: int) -> dict[str, Tensor]:
        chosen = order.indices(step)
        targets = images.labels[chosen].to(device)
        with autocast(device, config.precision):
            logits = model(shift_images(torch.from_numpy(images.read(chosen.numpy()))).to(device))
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        factor = cosine_factor(step, total, round(WARMUP_SHARE * total))
        update_weights(loss, model, list(optimizers.values()), factor=factor, clip_norm=CLIP_NORM, step=step)
        return {"loss": loss, "accuracy": (logits.argmax(1) == targets).float().mean()}

    history = run_steps(
        label="classifier",
        state={"model": model, **optimizers},
        step_fn=step_fn,
        total_steps=total,
        images_per_step=config.batch_size,
        seed=seed,
        checkpoints=checkpoints,
        launcher=launcher,
        tracker=tracker,
        precision=config.precision,
    )
    return model.eval(), history
