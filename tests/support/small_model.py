"""A small model, its settings, and what a training in a test needs."""

import torch

from tokenbridge.base.checks import BF16, FP32
from tokenbridge.base.device import has_bf16
from tokenbridge.base.protocols import Discard
from tokenbridge.config import LauncherConfig, ModelConfig, QuantizerConfig, TrainConfig
from tokenbridge.config.model import Trunk
from tokenbridge.model import AutoregressiveModel, make_model
from tokenbridge.training.trainer import NOT_MODEL_ARGUMENTS

# what is tested in both precisions is not tested in one that this processor emulates, tens of times slower
PRECISIONS = [FP32, BF16] if has_bf16(torch.device("cpu")) else [FP32]
LAUNCHER = LauncherConfig(
    kind="local",
    nodes=1,
    processes=1,
    max_restarts=3,
    strategy="ddp",
    accumulation=1,
    checkpoint_activations=False,
    compile=False,
    deterministic=False,
    keep_checkpoints=2,
    keep_every=0,
    threads=0,
    batch_size=8,
    log_seconds=1e9,
    checkpoint_seconds=0.0001,
    checkpoint_share=1e9,  # whatever it costs
    gpu_group="tests",
)
QUANTIZER = QuantizerConfig(
    family="gaussian",
    levels=8,
    range=5.0,
    distortion=0.1,
    codebooks=1,
    codewords=16,
    statistics="per_dimension",
    fixed_loc=0.0,
    fixed_scale=1.0,
    order="frequency",
    given_order=None,
    fit_images=64,
    patch_size=1,
)
RECIPE = TrainConfig(
    seed=0,
    batch_size=8,
    epochs=1,
    optimizer="adamw",
    learning_rate=2e-3,
    muon_learning_rate=0.02,
    weight_decay=0.02,
    beta1=0.9,
    beta2=0.95,
    warmup_epochs=0.0,
    clip_norm=1.0,
    ema_decay=0.9,
    ema_warmup=True,
    label_dropout=0.1,
    mask_ratio_mean=1.0,
    mask_ratio_std=0.25,
    mask_ratio_min=0.7,
    head_share=1.0,
    mask_group_size=None,
    precision="fp32",
    evaluations=2,
    sample_grids=False,
)
MODEL = ModelConfig(
    pretrained=None,
    trunk="masked",
    width=32,
    encoder_depth=1,
    decoder_depth=1,
    heads=2,
    head_width=32,
    head_depth=2,
    head_heads=2,
    head="autoregressive",
    head_group=1,
    head_modulation="slot",
    head_components=4,
    head_steps=4,
    head_repeats=2,
    draft_depth=None,
    buffer_size=2,
    dropout=0.0,
    level_embedding_std=0.02,
    train=RECIPE,
)
SHAPE = {"grid_height": 4, "grid_width": 4, "dimensions": 4, "levels": 8, "num_classes": 3}  # what tokens decide


class Silent(Discard):
    """A metric sink that keeps the metrics."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.rows.append((step, values))


def small_model(trunk: Trunk = "masked", **changes: object) -> AutoregressiveModel:
    """A fresh model of ``SHAPE`` and ``MODEL``, with some of the constructor's arguments changed."""
    torch.manual_seed(0)
    return make_model(trunk, **(SHAPE | sizes_of(MODEL) | changes))


def sizes_of(config: ModelConfig) -> dict[str, object]:
    """What a model's constructor takes of its configuration."""
    return {name: value for name, value in vars(config).items() if name not in NOT_MODEL_ARGUMENTS}


def random_model(trunk: Trunk = "masked", **changes: object) -> AutoregressiveModel:
    """``small_model`` for use, every weight random, adaLN too."""
    model = small_model(trunk, **changes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model
